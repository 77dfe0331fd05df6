"""STR-Match: the edit's spatio-temporal relevance score is pulled towards the source's.

    paper    STR-Match, Lee et al. 2025, equations 2-5 and Algorithm 1
    needs    a model with spatial and temporal self-attention side by side, or with attention over the whole clip at
             once; the source's trajectory
    gives    a Control that acts before a step
    differs  the source's score is recomputed at the target's noise level (`source_score="recompute"`) instead of stored
             from the inversion, which holds gigabytes; sums of row cosines, because one cosine over everything has a
             gradient too small to move the latent at the paper's strength

Before each step, one step of gradient descent on the latent of the edit:

    z <- z - strength * grad_z L(score(source), score(z)),    L = - sum over tokens of their rows' cosine

Of a layer that attends over the whole clip at once, which the paper does not define, the spatial maps are the softmax
over a frame's own tokens and the temporal ones that over one place in all frames ("factorised"), or its attention is
taken as it is ("direct", see `str_direct`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, get_args

import torch
from torch import Tensor

from ..engine.call import Call
from ..engine.late_gradient import Part, late_gradient
from ..engine.plan import Control, Step
from ..engine.words import Model
from ..kernels import map_distance, reduce_rows, str_rows
from .str_direct import direct_rows
from .str_inputs import Inputs, Levels, Pair, over, paired, score_inputs, site_pairs, temporal_maps

Reduction = Literal["row_sum", "frame", "layer", "global"]
StepMode = Literal["sgd", "relative"]
Heads = Literal["mean", "per_head"]
SourceScore = Literal["recompute", "inversion"]
Score = Literal["str", "maps"]
Joint = Literal["factorised", "direct"]

PAPER_STRENGTH = 0.01
RELATIVE_STEP = 2e-3  # of |z|, that "relative" moves the latent by at the paper's strength
HALF_LOSS_SCALE = 2.0**12  # a cosine over a whole layer has gradients below half precision's smallest number


@dataclass(frozen=True)
class STRLatentOptimizer(Control):
    """STR guidance.

    Args:
        strength: learning rate on the latent, >= 0; 0 is the plain edit bit for bit. The paper's is 0.01 (0.005 to
            0.015) for LaVie; small models want more. With "relative", 0.01 moves the latent by 0.2 % of its norm.
        reduction: which entries share one cosine: "row_sum" (each token's row, summed), "frame", "layer", or
            "global" (one for everything). All but the first want "relative".
        step_mode: "sgd" as in the paper, or "relative" for a step of known length.
        neighbours: frames on each side that a frame's score runs over, >= 1.
        heads: "mean" of the attention maps over heads, or "per_head" scores.
        levels: "all_but_finest" resolutions, as in the paper, or "all".
        start, end: share of the run in which the latent is optimised, 0..1.
        source_score: "recompute" the source's score at the target's noise level, or read it as the paper stores it
            from the "inversion", one level cleaner.
        joint: of models that attend over the whole clip at once: "factorised" maps, or the attention "direct".
        score: "str", or "maps": the paper's baseline, squared distance of the spatial and temporal maps themselves
            (its strength there is 0.08).

    Raises:
        ValueError: a number out of range or an unknown choice.
    """

    strength: float = PAPER_STRENGTH
    reduction: Reduction = "row_sum"
    step_mode: StepMode = "sgd"
    neighbours: int = 1
    heads: Heads = "mean"
    levels: Levels = "all_but_finest"
    start: float = 0.0
    end: float = 1.0
    source_score: SourceScore = "recompute"
    score: Score = "str"
    joint: Joint = "factorised"

    def __post_init__(self):
        if not self.strength >= 0:
            raise ValueError(f"strength must be 0 or more, got {self.strength}: 0 is the plain edit")
        if self.neighbours < 1:
            raise ValueError(f"neighbours must be 1 or more, got {self.neighbours}")
        if not 0 <= self.start <= self.end <= 1:
            raise ValueError(f"want 0 <= start <= end <= 1, shares of the run, got {self.start} and {self.end}")
        kinds = {"reduction": Reduction, "step_mode": StepMode, "heads": Heads, "levels": Levels}
        for name, kind in {**kinds, "source_score": SourceScore, "score": Score, "joint": Joint}.items():
            if getattr(self, name) not in get_args(kind):
                raise ValueError(f"no {name} '{getattr(self, name)}': want one of {', '.join(get_args(kind))}")

    def bytes(self, model: Model, rows: int, frames: int, size: tuple[int, int]) -> int:
        return model.bytes(1, frames, size, grad=True)

    def fits(self, model: Model) -> None:
        site_pairs(model, self.levels)

    def before_step(self, step: Step) -> Tensor:
        if self.strength == 0 or not self.start <= step.progress < self.end:
            return step.latents
        step.monitor.check()
        pairs = site_pairs(step.model, self.levels)
        layers = frozenset(site.layer for pair in pairs for site in pair)
        earlier = step.level - 1 if self.source_score == "inversion" else step.level
        source = self.of_source(paired(pairs, step.read(None, step.source_latents(earlier), layers)))
        step.monitor.check()
        with torch.enable_grad():
            z = step.latents.detach().clone().requires_grad_()
            target = paired(pairs, step.read(z, step.source_latents(), layers))
            loss, gradient = self.pull(source, target, z)
        moved = self._move(step.latents, gradient)
        share = (moved - step.latents).norm() / step.latents.norm().clamp(min=1e-12)
        step.kept[STRLatentOptimizer, self] = torch.isfinite(gradient).all()
        step.monitor.record(step=step.index, loss=loss, gradient=gradient.norm(), relative_step=share)
        return moved

    def after_step(self, step: Step) -> Tensor:
        finite = step.kept.pop((STRLatentOptimizer, self), None)  # read here, where the run waits for the GPU anyway
        if finite is not None and not finite:
            raise ValueError(
                "the gradient of the STR loss is NaN or infinite: load the model in float32 or bfloat16, or lower "
                "the strength"
            )
        return step.latents

    def of_source(self, pairs: Sequence[Pair]) -> list[Inputs | Pair]:
        """What is kept of the source's calls beside the target's graph, where an edit's memory is at its peak: temporal
        maps, which are so much smaller than what they are made of, and queries and keys in the kernels' own order."""
        if self.score == "maps" or self._direct(pairs[0][0]):
            return [(_bare(spatial), _bare(temporal)) for spatial, temporal in pairs]
        per_head = self.heads == "per_head"
        return [tuple(x.contiguous() for x in score_inputs(pair, per_head)) for pair in pairs]

    def pull(self, source: Sequence[Inputs | Pair], target: Sequence[Pair], z: Tensor) -> tuple[Tensor, Tensor]:
        """The loss, and its gradient with respect to z."""
        parts = [_part(partial(self._share, s), t) for s, t in zip(source, target)]
        reduce = sum if self.score == "maps" else partial(reduce_rows, reduction=self.reduction)
        return late_gradient(parts, reduce, z, HALF_LOSS_SCALE if self._tiny() else 1.0)

    def _share(self, source: Inputs | Pair, target: Pair) -> Tensor:
        """Of one pair of layers: its rows' statistics, or the distance of its maps."""
        if self.score == "maps":
            return _map_distance(source, target)
        per_head, how = self.heads == "per_head", {"neighbours": self.neighbours}
        if self._direct(target[0]):
            return direct_rows(source[0], target[0], per_head=per_head, **how)
        return str_rows(*source, *score_inputs(target, per_head), scale=target[0].scale, per_head=per_head, **how)

    def _direct(self, spatial: Call) -> bool:
        return self.joint == "direct" and spatial.site.kind == "joint"

    def _tiny(self) -> bool:
        return self.score == "str" and self.reduction != "row_sum"

    def _move(self, z: Tensor, gradient: Tensor) -> Tensor:
        if self.step_mode == "sgd":
            return z - self.strength * gradient
        size = self.strength / PAPER_STRENGTH * RELATIVE_STEP * z.norm()
        return z - size * gradient / gradient.norm().clamp(min=1e-20)


def _bare(call: Call) -> Call:
    """A call's queries and keys alone: values and tokens take more than these."""
    none = call.v.new_empty(0)
    return replace(call, v=none, tokens=none, key_tokens=none, beside=None)  # beside the source is itself


def _part(share: Callable[[Pair], Tensor], pair: Pair) -> Part:
    """A pair's queries and keys, and its share as a function of them."""
    calls = pair[:1] if pair[0] is pair[1] else pair

    def of(*given: Tensor) -> Tensor:
        made = [replace(call, q=q, k=k) for call, q, k in zip(calls, given[::2], given[1::2])]
        return share((made[0], made[-1]))

    return of, [x for call in calls for x in (call.q, call.k)]


def _map_distance(source: Pair, target: Pair) -> Tensor:
    """Squared distance of head-mean spatial and temporal maps: the baseline of the paper's ablation."""
    (s, s_time), (t, t_time) = source, target
    spatial = map_distance(*over(s, "spatial"), *over(t, "spatial"), scale=t.scale)
    if t_time.bias is not None and t_time.site.kind != "joint":
        return spatial + (temporal_maps(s_time, False) - temporal_maps(t_time, False)).square().sum()
    return spatial + map_distance(*over(s_time, "temporal"), *over(t_time, "temporal"), scale=t_time.scale)
