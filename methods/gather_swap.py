"""Gather-swap attention: all frames of an edit attend to the keys and values of a few frames of it.

paper    VIA, Gu et al. 2024 (arXiv 2406.12831), equations 7 to 9 and appendix A
needs    a model that evaluates frames one by one
gives    a Control that wraps a step's evaluation and rewrites self- and cross-attention
differs  the paper edits the group's frames one after another, through all steps; with a deterministic sampler one
         batch a step is the same, so keys and values live for one step and not for the run

Gather, once a step: frame g_i of the group attends to the frames of the group before it and not to itself,
K = [K_1 .. K_{i-1}]; the first, which has none, to its own. Swap: every frame of the clip, those of the group included,
attends to K = [K_1 .. K_G], never to its own. V alike; every row of the edit, so guidance's too.

Keys and values of cross-attention come from the text alone. With one text for all frames the swap repeats each of them
G times, and a softmax over repeated keys gives what it gave before: it acts only with a text per frame.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import ClassVar, Literal, get_args

import torch
from einops import rearrange
from torch import Tensor

from ..engine.call import Attend, Call, Evaluation, joined_rows
from ..engine.plan import Control, Needs, Slot
from ..engine.source import Trajectory
from ..engine.words import Model, Prompt

Layers = Literal["self_and_cross", "self", "cross"]
_KINDS = {"self_and_cross": ("spatial", "cross"), "self": ("spatial",), "cross": ("cross",)}
GB = 2**30


def spread(frames: int, size: int) -> tuple[int, ...]:
    """`size` frames, evenly spaced over `frames`, the first and the last among them; one is the first.

    Raises:
        ValueError: no frame is wanted, or more than there are.
    """
    if not 1 <= size <= frames:
        raise ValueError(f"want a group of 1 to {frames} frames, as many as the clip has, got {size}")
    return tuple((2 * i * (frames - 1) + size - 1) // max(2 * (size - 1), 1) for i in range(size))


@dataclass
class Bank:
    """Keys and values of the group at one step, call by call. It lives in that step's evaluation.

    A layer is called more than once where another method mixes the attention of rows; the calls come in the same order
    when the group is gathered and when all frames are evaluated.
    """

    resident: int  # bytes that stay on the device of the network; what comes after them waits in main memory
    budget: int  # bytes in all
    bytes: int = 0
    held: dict[tuple, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def store(self, call: Call, k: Tensor, v: Tensor) -> None:
        self.bytes += k.nbytes + v.nbytes
        if self.bytes <= self.budget:  # over it: only counted, for the message
            self.held[_named(call)] = (k, v) if self.bytes <= self.resident else (_offloaded(k), _offloaded(v))

    def load(self, call: Call) -> tuple[Tensor, Tensor]:
        k, v = self.held[_named(call)]
        return k.to(call.q.device, non_blocking=True), v.to(call.q.device, non_blocking=True)

    def require_budget(self) -> None:
        if self.bytes > self.budget:
            raise ValueError(
                f"the keys and values of the group take {self.bytes / GB:.3g} GB a step and {self.budget / GB:.3g} GB "
                "are allowed: use a smaller group or smaller frames, gather self-attention alone, or raise the budget"
            )


def _named(call: Call) -> tuple:
    """What tells one call of a layer from another: whose values, and whose queries and keys."""
    return call.site.layer, call.rows, call.map_of


def _offloaded(x: Tensor) -> Tensor:
    if x.device.type == "cpu":
        return x
    return torch.empty(x.shape, dtype=x.dtype, pin_memory=True).copy_(x)


@dataclass(frozen=True, eq=False)
class GatherSwap(Control):
    """All frames attend to the keys and values of a few of them.

    Args:
        group: how many frames, evenly spaced over the clip (the paper: 4), or which, in the order they are gathered.
        layers: self-attention, cross-attention or both (the paper).
        adapt_steps: the first so many steps; 0 is all of them. The paper: "at least on the first 8" of 10.
        resident: bytes of keys and values that stay on the GPU; more of them wait in pinned main memory.
        budget: bytes they may take in all.

    Raises:
        ValueError: numbers that make no sense; when sampling, a group larger than the clip, a model whose frames see
            each other, or keys and values over the budget.
    """

    slot: ClassVar[Slot] = "keys"
    title: ClassVar[str] = "Gather-Swap Attention"

    group: int | tuple[int, ...] = 4
    layers: Layers = "self_and_cross"
    adapt_steps: int = 0
    resident: int = 2 * GB
    budget: int = 8 * GB

    def __post_init__(self):
        if self.layers not in get_args(Layers):
            raise ValueError(f"no layers '{self.layers}': want one of {', '.join(get_args(Layers))}")
        if self.adapt_steps < 0:
            raise ValueError(f"adapt_steps must be 0 (all steps) or more, got {self.adapt_steps}")
        if min(self.resident, self.budget) < 0:
            raise ValueError(f"want budgets of 0 bytes or more, got {self.resident} and {self.budget}")
        if not isinstance(self.group, int) and (not self.group or len(set(self.group)) < len(self.group)):
            raise ValueError(f"want a group of different frames, at least one, got {self.group}")

    def needs(self) -> Needs:
        return Needs(picks_frames=True, framewise=True, edit=True, keys="bank")

    def check(self, trajectory: Trajectory, model: Model, target: Prompt | None) -> None:
        self.members(trajectory.shape[0])

    def members(self, frames: int) -> tuple[int, ...]:
        """The group's positions among `frames` frames. ValueError where it does not fit."""
        if isinstance(self.group, int):
            return spread(frames, self.group)
        if outside := [g for g in self.group if not 0 <= g < frames]:
            raise ValueError(f"the group wants frames {outside}, and the clip has frames 0 to {frames - 1}")
        return self.group

    def evaluate(self, evaluation: Evaluation, evaluate: Callable[[Evaluation], Tensor]) -> Tensor:
        looking = all(row.of_source for row in evaluation.rows)  # another method's pass of the source alone
        if looking or (self.adapt_steps and evaluation.run.step >= self.adapt_steps):
            return evaluate(evaluation)
        bank = Bank(self.resident, self.budget)
        group = evaluation.select(self.members(evaluation.latents.shape[1]))
        evaluate(replace(group, whole=True).share(self, partial(_gather, bank)))
        bank.require_budget()
        return evaluate(evaluation.share(self, partial(_swap, bank)))

    def attention(self, call: Call, attend: Attend) -> Tensor:
        act = call.run.shared.get(self)
        if act is None or call.site.kind not in _KINDS[self.layers]:
            return attend(call)
        own = [row for row in call.rows if row.of_source]  # it is not edited: it goes on attending to itself
        edit = [row for row in call.rows if not row.of_source]
        if not own or not edit:
            return attend(call) if own else act(call, attend)
        parts = dict(zip(own, attend(call.only(*own)).split(1)))
        parts |= dict(zip(edit, act(call.only(*edit), attend).split(1)))
        return joined_rows(call.rows, parts)


def _gather(bank: Bank, call: Call, attend: Attend) -> Tensor:
    """Equations 7 and 8: frame i of the group sees those before it, the first itself."""
    bank.store(call, *(rearrange(x, "r f h m d -> r 1 h (f m) d") for x in (call.k, call.v)))
    return attend(call.seeing(range(max(i, 1)) for i in range(call.q.shape[1])))


def _swap(bank: Bank, call: Call, attend: Attend) -> Tensor:
    """Equation 9: all frames see the group."""
    return attend(call.with_keys(*bank.load(call)))
