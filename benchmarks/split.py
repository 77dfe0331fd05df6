"""Where a step's time goes: what the network's evaluations take, what a method multiplies beside them, and the rest.

Evaluations are timed again, alone, in the same run as the step they were seen in. Products are timed where they stand:
alone, with their input in the cache again and again, COVE's took little more than half as long.
"""

from __future__ import annotations

import ctypes
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten
from torch.utils.flop_counter import flop_registry

from ..engine.call import Evaluation, Run
from ..engine.monitor import Monitor
from ..engine.plan import PLAIN, EditPlan
from ..engine.ports import Denoiser, Predict
from ..engine.probe import read_calls
from ..engine.schedule import Schedule
from ..engine.words import Prompt, Row

T = TypeVar("T")
# A formula's arithmetic, and no overhead: matrix products, attention and softmax, forward and backward.
PRODUCTS = (
    "mm", "addmm", "bmm", "baddbmm", "baddbmm_", "convolution", "convolution_backward", "_softmax", "_safe_softmax",
    "_softmax_backward_data",
)  # fmt: skip
# What a formula looks for or takes out of a list: COVE's matching, TokenFlow's neighbours.
SEARCHES = ("max", "argmax", "sort", "topk", "index_select", "gather", "scatter_add")
# What it adds up over tokens or channels: STEM's mass, the norms of its bases, the mean of what it starts from.
SUMS = ("sum", "mean", "linalg_vector_norm")
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


@dataclass(frozen=True)
class Product:
    """One operation of torch with what it was given."""

    function: Callable
    given: tuple
    flops: int = field(compare=False)


class Products(TorchDispatchMode):
    """`with Products() as seen: ...` counts products in `seen.count`, by what each was given, and times them."""

    def __init__(self):
        super().__init__()
        self.count: Counter[Product] = Counter()
        self._seconds: Counter[Product] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.removeprefix("aten::")
        if name not in PRODUCTS + SEARCHES + SUMS and "scaled_dot_product" not in name:
            return func(*args, **(kwargs or {}))
        given = tuple(Meta.of(x) if isinstance(x, Tensor) else _hashable(x) for x in tree_flatten((args, kwargs))[0])
        begun = time.process_time()
        out = func(*args, **(kwargs or {}))
        seconds = time.process_time() - begun
        product = Product(func, given, _flops(func, name, args, kwargs or {}, out))
        self.count[product] += 1
        self._seconds[product] += seconds
        return out

    def prices(self) -> dict[Product, float]:
        """Seconds of each, on average."""
        return {product: self._seconds[product] / count for product, count in self.count.items()}


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


def keep_memory() -> None:
    """Has the C library keep what is freed, where it is glibc."""
    if hasattr(library := ctypes.CDLL(None), "mallopt"):
        for option in (-3, -1):  # the size from which memory is mapped on its own, and what may lie free at the end
            library.mallopt(option, 2**30)


def matrix_rate() -> float:
    """Flops a second of a large product."""
    a = torch.randn(1024, 1024)
    return 2 * 1024**3 / least(lambda: a @ a, 1.0)
