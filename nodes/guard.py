"""What stands between ComfyUI and every node: what comes in is what the socket says, what goes out can be printed.

A prompt sent over HTTP may hold anything: ComfyUI checks numbers that are written into it, and little else. A text that
cannot be printed, half of a surrogate pair, stops ComfyUI's worker for good when an error repeats it.
"""

from __future__ import annotations

import math
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from comfy_api.v0_0_2 import io
from torch import Tensor

from ..engine.correspondence import Correspondence
from ..engine.plan import EditPlan
from ..engine.ports import Backbone
from ..engine.source import Inverted, Noised
from ..engine.words import require_text
from ..methods.chunks import Chunk, ChunkPlan

LONGEST = 2000  # characters of a message
SCREEN = 600  # of a refusal
SHORT = 60  # characters of a value in a message
LITERALS = (str, int, float, list, tuple, dict)  # what a prompt can hold in place of a wire
CARRIED = {  # socket -> what it carries, where one class says it
    "WEFT_MODEL": Backbone,
    "WEFT_TRAJECTORY": (Inverted, Noised),
    "WEFT_PLAN": EditPlan,
    "WEFT_CORRESPONDENCE": Correspondence,
    "WEFT_CHUNKS": ChunkPlan,
    "WEFT_CHUNK": Chunk,
}
TENSORS = {"IMAGE": (4, "frames [F, H, W, 3]"), "MASK": (3, "masks [F, H, W]")}  # socket -> axes, in words


def guarded(node: type) -> type:
    """The node, behind the guard."""
    guards = (LazyGuard, Guard) if "check_lazy_status" in vars(node) else (Guard,)
    return type(node.__name__, (*guards, node), {"__module__": node.__module__, "__doc__": node.__doc__})


class Guard(io.ComfyNode):
    """Comes before a node's own class."""

    @classmethod
    def execute(cls, **inputs):
        with _printable_errors():
            _require(cls.SCHEMA.inputs, inputs)
            return super().execute(**inputs)


class LazyGuard(io.ComfyNode):
    """The same before a node looks at what it has been given so far, which ComfyUI asks for first."""

    @classmethod
    def check_lazy_status(cls, **inputs):
        with _printable_errors():
            _require(cls.SCHEMA.inputs, {name: value for name, value in inputs.items() if value is not None})
            return super().check_lazy_status(**inputs)


@contextmanager
def _printable_errors() -> Iterator[None]:
    try:
        yield
    except ValueError as error:  # what we refuse: one line that fits a screen, whatever text it repeats
        told = clipped(" ".join(printable(str(error)).splitlines()))
        if told == str(error) and (said := "".join(traceback.format_exception(error))) == printable(said):
            raise
        raise ValueError(told) from None
    except Exception as error:
        if (said := "".join(traceback.format_exception(error))) == printable(said):
            raise
        raise ValueError(short(printable(str(error)), LONGEST)) from None


def printable(text: str) -> str:
    """The text with what no screen shows, and no file takes, written as an escape."""
    return "".join(c if c.isprintable() or c in "\n\t" else ascii(c)[1:-1] for c in text)


def clipped(text: str) -> str:
    """The text without its middle, where it is long: what was wrong comes first, and what to do last."""
    return text if len(text) <= SCREEN else f"{text[: SCREEN // 2]} ... {text[5 - SCREEN // 2 :]}"


def short(text: str, longest: int = SHORT) -> str:
    return text if len(text) <= longest else f"{text[:longest]}..."


def _require(slots: list[io.Input], values: Mapping[str, Any]) -> None:
    """ValueError for the first value that its input cannot take, in one sentence."""
    wrong = ((slot.id, _complaint(slot, values[slot.id])) for slot in slots if slot.id in values)
    if first := next(((name, complaint) for name, complaint in wrong if complaint), None):
        raise ValueError(f"'{first[0]}' {first[1]}")


def _complaint(slot: io.Input, value: Any) -> str | None:
    kind = slot.get_io_type()
    if value is None and slot.optional and kind not in WIDGETS:
        return None
    return WIDGETS[kind](slot, value) if kind in WIDGETS else _wire(kind, value)


def _wire(kind: str, value: Any) -> str | None:
    """What is wrong with the value of a socket."""
    got = f"got {_told(value)}: connect an output of this type"
    if kind in TENSORS:
        axes, words = TENSORS[kind]
        return None if isinstance(value, Tensor) and value.ndim == axes else f"({kind}) wants {words}, {got}"
    if kind == "LATENT":
        fine = isinstance(value, dict) and isinstance(value.get("samples"), Tensor)
        return None if fine else f"(LATENT) wants latents, {got}"
    if kind == "CONDITIONING":
        return None if isinstance(value, list) else f"(CONDITIONING) wants an encoded prompt, {got}"
    wanted = CARRIED.get(kind)
    if value is None or isinstance(value, LITERALS) or (wanted and not isinstance(value, wanted)):
        return f"({kind}) wants a wire, {got}"
    return None


def _text(slot: io.Input, value: Any) -> str | None:
    if not isinstance(value, str):
        return f"wants a text, got {_told(value)}"
    try:
        return require_text(value)
    except ValueError as error:
        return f"cannot be read: {error}"


def _number(slot: io.Input, value: Any) -> str | None:
    """Wired numbers are checked by nobody else."""
    kinds = (int,) if slot.get_io_type() == "INT" else (int, float)
    if not isinstance(value, kinds) or not math.isfinite(value):
        return f"wants a {'whole ' * (len(kinds) == 1)}number, got {_told(value)}"
    if not slot.min <= value <= slot.max:
        return f"wants a number in {slot.min}..{slot.max}, got {value}"
    return None


def _switch(slot: io.Input, value: Any) -> str | None:
    return None if isinstance(value, (bool, int)) else f"wants true or false, got {_told(value)}"


WIDGETS = {"STRING": _text, "COMBO": _text, "INT": _number, "FLOAT": _number, "BOOLEAN": _switch}


def _told(value: Any) -> str:
    """What somebody connected or wrote, shortly."""
    if isinstance(value, Tensor):
        return f"a tensor {list(value.shape)}"
    if isinstance(value, str):
        return f"the text {short(value)!r}"
    if isinstance(value, LITERALS) or value is None:
        return short(repr(value))
    return f"a {type(value).__name__}"
