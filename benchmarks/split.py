"""Where a step's time goes: what the network's evaluations take, what a method multiplies beside them, and the rest.

Evaluations and products are timed again, alone, in the same run as the step they were seen in.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_unflatten
from torch.utils.flop_counter import flop_registry

from ..engine.call import Evaluation, Run
from ..engine.monitor import Monitor
from ..engine.plan import PLAIN, EditPlan
from ..engine.ports import Denoiser, Predict
from ..engine.probe import read_calls
from ..engine.schedule import Schedule
from ..engine.words import Prompt, Row

T = TypeVar("T")
# Arithmetic, and no overhead: matrix products, attention and softmax, forward and backward.
PRODUCTS = (
    "mm", "addmm", "bmm", "baddbmm", "baddbmm_", "convolution", "convolution_backward", "_softmax", "_safe_softmax",
    "_softmax_backward_data",
)  # fmt: skip
# What a formula looks for or takes out of a list: COVE's matching, TokenFlow's neighbours.
SEARCHES = ("max", "argmax", "sort", "topk", "index_select", "gather", "scatter_add")
TRIES = 0.05  # seconds that one thing is tried again and again for


# ---- products -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Meta:
    """What a tensor was like."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, x: Tensor) -> Meta:
        return cls(tuple(x.shape), x.stride(), x.dtype)

    def like(self, places: int) -> Tensor:
        """Random numbers, laid out alike; whole ones are under `places`, as an index is."""
        last = 1 + sum((n - 1) * s for n, s in zip(self.shape, self.stride))
        whole = not self.dtype.is_floating_point
        numbers = torch.randint(places, (last,)) if whole else torch.randn(last)
        return numbers.to(self.dtype).as_strided(self.shape, self.stride)


@dataclass(frozen=True)
class Product:
    """One operation of torch with what it was given."""

    function: Callable
    given: tuple
    form: Any = field(compare=False)  # how `given` was nested
    flops: int = field(compare=False)

    def seconds(self) -> float:
        """The least of many tries."""
        first, *others = self.given
        places = first.shape[others[0]] if others and type(others[0]) is int and first.shape else 1  # along this axis
        args, named = tree_unflatten([x.like(places) if isinstance(x, Meta) else x for x in self.given], self.form)
        with torch.no_grad():
            return least(lambda: self.function(*args, **named))


class Products(TorchDispatchMode):
    """`with Products() as seen: ...` counts products in `seen.count`, by what each was given."""

    def __init__(self):
        super().__init__()
        self.count: Counter[Product] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        name = func._schema.name.removeprefix("aten::")
        if name in PRODUCTS + SEARCHES or "scaled_dot_product" in name:
            flat, form = tree_flatten((args, kwargs or {}))
            given = tuple(Meta.of(x) if isinstance(x, Tensor) else _hashable(x) for x in flat)
            self.count[Product(func, given, form, _flops(func, name, args, kwargs or {}, out))] += 1
        return out


def _hashable(x: Any) -> Any:
    return x if isinstance(x, (int, float, bool, str, torch.dtype, torch.device, type(None))) else str(x)


def _flops(func, name: str, args, kwargs, out) -> int:
    if func.overloadpacket in flop_registry:
        return flop_registry[func.overloadpacket](*args, **kwargs, out_val=out)
    if "scaled_dot_product" in name:  # the CPU's own is not in the registry
        backward = "backward" in name
        q, k = args[backward], args[backward + 1]
        return (10 if backward else 4) * q[..., 0].numel() * q.shape[-1] * k.shape[-2]
    return 2 * args[1].numel() * args[2].shape[-1] if name == "baddbmm_" else 0


# ---- evaluations ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Asked:
    """One evaluation of the network, as some method wanted it."""

    evaluation: Evaluation
    graded: bool
    wanted: frozenset[str] = frozenset()  # attention layers it ended after, if it did
    row: Row | None = None

    @classmethod
    def of(cls, evaluation: Evaluation, plan: EditPlan) -> Asked:
        latents = evaluation.latents
        plain = replace(evaluation, latents=latents.detach().clone(), run=Run())
        looks = [control for control in plan.controls if control.looks_only]
        graded = torch.is_grad_enabled() and latents.requires_grad
        return cls(plain, graded, *((looks[0].wanted, looks[0].row) if looks else ()))

    @property
    def alike(self) -> tuple:
        """What tells it from others in cost."""
        return tuple(self.evaluation.latents.shape), self.graded, self.wanted, self.evaluation.recompute

    def again(self, predict: Predict) -> None:
        """The same without the method. Where gradients were wanted, of no loss in particular."""
        if not self.wanted:
            predict(self.evaluation, PLAIN)
            return
        with torch.set_grad_enabled(self.graded):
            latents = self.evaluation.latents.clone().requires_grad_(self.graded)
            calls = read_calls(predict, replace(self.evaluation, latents=latents), PLAIN, self.row, self.wanted)
            if self.graded:
                ends = [x for call in calls.values() for x in (call.q, call.k)]
                torch.autograd.grad(ends, latents, [torch.ones_like(x) for x in ends])


class Listening:
    """A denoiser that keeps what was asked of the network while it `listens`."""

    def __init__(self, denoiser: Denoiser):
        self.denoiser, self.asked, self.listens = denoiser, [], False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.denoiser, name)

    def session(
        self, prompts: Sequence[Prompt], latents: Tensor, schedule: Schedule, body: Callable[[Predict], T], **how: Any
    ) -> T:
        def listened(predict: Predict) -> T:
            def kept(evaluation: Evaluation, plan: EditPlan = PLAIN) -> Tensor:
                if self.listens:
                    self.asked.append(Asked.of(evaluation, plan))
                return predict(evaluation, plan)

            return body(kept)

        return self.denoiser.session(prompts, latents, schedule, listened, **how)


# ---- steps ----------------------------------------------------------------------------------------------------------


class Done(Exception):
    """Enough steps were seen."""


class Steps(Monitor):
    """Times steps 2 and 3 of a run and ends it; the first makes what there is once a run. Or `look`s at step 2."""

    def __init__(self, look: Callable[[bool], None] | None = None):
        self.look, self.seconds, self.started = look, [], 0.0

    def progress(self, done: int, total: int, preview: Tensor | None = None) -> None:
        now = time.process_time()
        if self.look is not None and done in (1, 2):
            self.look(done == 1)
        if done > 1:
            self.seconds.append(now - self.started)
        if done == (3 if self.look is None else 2):
            raise Done
        self.started = time.process_time()


def least(call: Callable[[], object], tries: float = TRIES) -> float:
    """The least processor time of some calls that together take `tries` seconds, and of one at least."""
    best, begun = float("inf"), time.process_time()
    while best == float("inf") or time.process_time() - begun < tries:
        start = time.process_time()
        call()
        best = min(best, time.process_time() - start)
    return best
