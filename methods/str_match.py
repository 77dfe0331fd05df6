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

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from einops import rearrange
from torch import Tensor

from ..engine.call import Call
from ..engine.plan import Control, Step
from ..engine.words import Model, Site
from ..kernels import map_distance, reduce_rows, str_rows
from .str_direct import direct_rows

Reduction = Literal["row_sum", "frame", "layer", "global"]
StepMode = Literal["sgd", "relative"]
Heads = Literal["mean", "per_head"]
Levels = Literal["all_but_finest", "all"]
SourceScore = Literal["recompute", "inversion"]
Score = Literal["str", "maps"]
Joint = Literal["factorised", "direct"]
Pair = tuple[Call, Call]  # the spatial and the temporal call of one block, of one row

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
        source = queries_and_keys(paired(pairs, step.read(None, step.source_latents(earlier), layers)))
        step.monitor.check()
        with torch.enable_grad():
            z = step.latents.detach().clone().requires_grad_()
            loss = self._loss(source, paired(pairs, step.read(z, step.source_latents(), layers)))
            gradient = self._gradient(loss, z)
        moved = self._move(step.latents, gradient)
        share = (moved - step.latents).norm() / step.latents.norm().clamp(min=1e-12)
        step.kept[STRLatentOptimizer, self] = torch.isfinite(gradient).all()
        step.monitor.record(step=step.index, loss=loss.detach(), gradient=gradient.norm(), relative_step=share)
        return moved

    def after_step(self, step: Step) -> Tensor:
        finite = step.kept.pop((STRLatentOptimizer, self), None)  # read here, where the run waits for the GPU anyway
        if finite is not None and not finite:
            raise ValueError(
                "the gradient of the STR loss is NaN or infinite: load the model in float32 or bfloat16, or lower "
                "the strength"
            )
        return step.latents

    def _loss(self, source: Sequence[Pair], target: Sequence[Pair]) -> Tensor:
        if self.score == "maps":
            return sum(_map_distance(s, t) for s, t in zip(source, target))
        per_head = self.heads == "per_head"

        def rows(s: Pair, t: Pair) -> Tensor:
            how = {"neighbours": self.neighbours, "per_head": per_head}
            if self.joint == "direct" and t[0].site.kind == "joint":
                return direct_rows(s[0], t[0], **how)
            return str_rows(*score_inputs(s, per_head), *score_inputs(t, per_head), scale=t[0].scale, **how)

        return reduce_rows([rows(s, t) for s, t in zip(source, target)], self.reduction)

    def _gradient(self, loss: Tensor, z: Tensor) -> Tensor:
        (gradient,) = torch.autograd.grad(loss * HALF_LOSS_SCALE if self._tiny() else loss, z)
        return gradient / HALF_LOSS_SCALE if self._tiny() else gradient

    def _tiny(self) -> bool:
        return self.score == "str" and self.reduction != "row_sum"

    def _move(self, z: Tensor, gradient: Tensor) -> Tensor:
        if self.step_mode == "sgd":
            return z - self.strength * gradient
        size = self.strength / PAPER_STRENGTH * RELATIVE_STEP * z.norm()
        return z - size * gradient / gradient.norm().clamp(min=1e-20)


def site_pairs(model: Model, levels: Levels = "all_but_finest") -> list[tuple[Site, Site]]:
    """Spatial self-attention sites with the temporal one of the same block, in running order; a site that attends over
    the whole clip at once is both. Such models have no finest level: for them "all_but_finest" is every second layer of
    the middle half.

    Raises:
        ValueError: the model has no such pair at these levels.
    """
    temporal: dict[str, Site] = {}
    for site in model.sites:
        if site.kind == "temporal":
            temporal.setdefault(site.block, site)  # of two temporal layers in a block, the first (the paper has one)
    joint = [(s, s) for s in model.sites if s.kind == "joint"]
    if joint:
        return joint if levels == "all" else joint[len(joint) // 4 : len(joint) - len(joint) // 4 : 2]
    pairs = [(s, temporal[s.block]) for s in model.sites if s.kind == "spatial" and s.block in temporal]
    if not pairs:
        raise ValueError(
            f"'{model.name}' has no spatial attention with temporal attention beside it: STR-Match wants a "
            "text-to-video model"
        )
    if levels == "all":
        return pairs
    coarse = [pair for pair in pairs if pair[0].level > 0]
    if not coarse:
        raise ValueError(f"'{model.name}' has attention at the finest level only: choose levels 'all'")
    return coarse


def paired(pairs: Sequence[tuple[Site, Site]], calls: Mapping[str, Call]) -> list[Pair]:
    """The calls at pairs of sites, as pairs."""
    return [(calls[spatial.layer], calls[temporal.layer]) for spatial, temporal in pairs]


def queries_and_keys(pairs: Sequence[Pair]) -> list[Pair]:
    """Calls with nothing else in them, to be kept beside the target's graph: values and tokens take more than these."""

    def bare(call: Call) -> Call:
        none = call.v.new_empty(0)
        return replace(call, v=none, tokens=none, key_tokens=none, beside=None)  # beside the source is itself

    return [(bare(spatial), bare(temporal)) for spatial, temporal in pairs]


def score_inputs(pair: Pair, per_head: bool) -> tuple[Tensor, Tensor, Tensor]:
    """(q, k [F, H, N, D], temporal maps [N, F, F] or [H, N, F, F]) of one clip."""
    spatial, temporal = pair
    maps = _temporal_maps(temporal)
    return *_over(spatial, "spatial"), maps.transpose(0, 1) if per_head else maps.mean(1)


def _over(call: Call, kind: str) -> tuple[Tensor, Tensor]:
    """q, k of one clip as spatial attention [F, H, N, D] or as temporal one [N, H, F, D] has them."""
    if call.site.kind != "joint":
        return call.q[0], call.k[0]
    frames, h, w = call.grid
    to = "h (f n) d -> f h n d" if kind == "spatial" else "h (f n) d -> n h f d"
    return tuple(rearrange(x[0, 0, :, -frames * h * w :], to, f=frames) for x in (call.q, call.k))


def _temporal_maps(call: Call) -> Tensor:
    """[N, H, F, F] softmax maps in float32, with what the layer adds to its logits; small, so they are simply made."""
    q, k = (x.float() if x.dtype in (torch.float16, torch.bfloat16) else x for x in _over(call, "temporal"))
    logits = q @ k.transpose(-1, -2) * call.scale
    own = call.bias is not None and call.site.kind != "joint"  # there it hides a text's padding, which is not in these
    return (logits + call.bias[0].to(logits) if own else logits).softmax(-1)


def _map_distance(source: Pair, target: Pair) -> Tensor:
    """Squared distance of head-mean spatial and temporal maps: the baseline of the paper's ablation."""
    (s, s_time), (t, t_time) = source, target
    spatial = map_distance(*_over(s, "spatial"), *_over(t, "spatial"), scale=t.scale)
    if t_time.bias is not None and t_time.site.kind != "joint":
        return spatial + (_temporal_maps(s_time).mean(1) - _temporal_maps(t_time).mean(1)).square().sum()
    return spatial + map_distance(*_over(s_time, "temporal"), *_over(t_time, "temporal"), scale=t_time.scale)
