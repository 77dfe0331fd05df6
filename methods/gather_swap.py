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
from typing import TYPE_CHECKING, Literal, get_args

import torch
from einops import rearrange
from torch import Tensor

from ..engine.nouns import Attend, AttentionCall, Control, EditPlan, Evaluation, Row, Trajectory

if TYPE_CHECKING:
    from ..backbones.protocol import Backbone

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
    """Keys and values of the group at one step, layer by layer. It lives in that step's evaluation."""

    rows: tuple[Row, ...]
    resident: int  # bytes that stay on the device of the network; what comes after them waits in main memory
    budget: int  # bytes in all
    bytes: int = 0
    held: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def store(self, layer: str, k: Tensor, v: Tensor) -> None:
        self.bytes += k.nbytes + v.nbytes
        if self.bytes <= self.budget:  # over it: only counted, for the message
            self.held[layer] = (k, v) if self.bytes <= self.resident else (_offloaded(k), _offloaded(v))

    def load(self, layer: str, device: torch.device) -> tuple[Tensor, Tensor]:
        k, v = self.held[layer]
        return k.to(device, non_blocking=True), v.to(device, non_blocking=True)

    def require_budget(self) -> None:
        if self.bytes > self.budget:
            raise ValueError(
                f"the keys and values of the group take {self.bytes / GB:.3g} GB a step and {self.budget / GB:.3g} GB "
                "are allowed: use a smaller group or smaller frames, gather self-attention alone, or raise the budget"
            )


def _offloaded(x: Tensor) -> Tensor:
    if x.device.type == "cpu":
        return x
    return torch.empty(x.shape, dtype=x.dtype, pin_memory=True).copy_(x)


@dataclass(frozen=True, eq=False)
class GatherSwap(Control):
    """See `gather_swap`."""

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

    def check(self, trajectory: Trajectory, backbone: Backbone) -> None:
        if not backbone.framewise:
            raise ValueError(
                f"gather-swap attention wants a model that edits frames one by one, and '{backbone.name}' looks at all "
                "together: use an image or instruction model"
            )
        self.members(trajectory.frames)

    def members(self, frames: int) -> tuple[int, ...]:
        """The group's positions among `frames` frames. ValueError where it does not fit."""
        if isinstance(self.group, int):
            return spread(frames, self.group)
        if outside := [g for g in self.group if not 0 <= g < frames]:
            raise ValueError(f"the group wants frames {outside}, and the clip has frames 0 to {frames - 1}")
        return self.group

    def evaluate(self, evaluation: Evaluation, evaluate: Callable[[Evaluation], Tensor]) -> Tensor:
        if self.adapt_steps and evaluation.step >= self.adapt_steps:
            return evaluate(evaluation)
        if set(evaluation.rows) == {"source"}:
            raise ValueError(
                "gather-swap attention acts on an edit, and an inversion has none: connect it to Edit Sampler's plan"
            )
        bank = Bank(evaluation.rows, self.resident, self.budget)
        group = evaluation.select(self.members(evaluation.latents.shape[1]))
        evaluate(replace(group, whole=True).share(self, partial(_gather, bank)))
        bank.require_budget()
        return evaluate(evaluation.share(self, partial(_swap, bank)))

    def attention(self, call: AttentionCall, q: Tensor, k: Tensor, v: Tensor, attend: Attend) -> Tensor:
        act = call.evaluation.shared.get(self)
        if act is None or call.site.kind not in _KINDS[self.layers]:
            return attend(q, k, v)
        x = act(call, q, k, v, attend)
        if "source" not in call.evaluation.rows:
            return x
        source = call.row("source")  # it is not edited: it goes on attending to itself
        return torch.cat([x[:source], attend(q, k, v)[source : source + 1], x[source + 1 :]])


def _gather(bank: Bank, call: AttentionCall, q: Tensor, k: Tensor, v: Tensor, attend: Attend) -> Tensor:
    """Equations 7 and 8: frame i of the group sees those before it, the first itself."""
    outputs = []
    for i in range(q.shape[1]):
        seen = slice(0, max(i, 1))
        outputs.append(attend(q[:, i : i + 1], _side_by_side(k[:, seen]), _side_by_side(v[:, seen])))
    bank.store(call.site.layer, _side_by_side(k), _side_by_side(v))
    return torch.cat(outputs, 1)


def _swap(bank: Bank, call: AttentionCall, q: Tensor, k: Tensor, v: Tensor, attend: Attend) -> Tensor:
    """Equation 9: all frames see the group. As they see the same, they are one long row of queries."""
    if call.evaluation.rows != bank.rows:
        raise ValueError(
            f"keys were gathered for the guidance branches {', '.join(bank.rows)}, and {call.site.layer} is evaluated "
            f"for {', '.join(call.evaluation.rows)}: another method of the plan changes them; put it before gather-swap"
        )
    x = attend(_side_by_side(q), *bank.load(call.site.layer, q.device))
    return rearrange(x, "r 1 h (f m) d -> r f h m d", f=q.shape[1])


def _side_by_side(x: Tensor) -> Tensor:
    """The tokens of all frames as those of one: [R, F, H, M, D] -> [R, 1, H, F M, D]."""
    return rearrange(x, "r f h m d -> r 1 h (f m) d")


def gather_swap(
    plan: EditPlan,
    *,
    group: int | tuple[int, ...] = 4,
    layers: Layers = "self_and_cross",
    adapt_steps: int = 0,
    resident: int = 2 * GB,
    budget: int = 8 * GB,
) -> EditPlan:
    """`plan` with gather-swap attention.

    Args:
        group: how many frames, evenly spaced over the clip (the paper: 4), or which, in the order they are gathered.
        layers: self-attention, cross-attention or both (the paper).
        adapt_steps: the first so many steps; 0 is all of them. The paper: "at least on the first 8" of 10.
        resident: bytes of keys and values that stay on the GPU; more of them wait in pinned main memory.
        budget: bytes they may take in all.

    Raises:
        ValueError: numbers that make no sense; when sampling, a group larger than the clip, a model whose frames see
            each other, an inversion, or keys and values over the budget.
    """
    return plan.then(GatherSwap(group, layers, adapt_steps, resident, budget))
