"""STR-Match: the edit's spatio-temporal relevance score is pulled towards the source's.

    paper    STR-Match, Lee et al. 2025, equations 2-5 and Algorithm 1
    needs    a model with spatial and temporal self-attention side by side; the source's trajectory
    gives    a Control that acts before a step, and the score itself for viewers
    differs  the source's score is recomputed at the target's noise level (`source_score="recompute"`) instead of stored
             from the inversion, which holds gigabytes; sums of row cosines, because one cosine over everything has a
             gradient too small to move the latent at the paper's strength

Before each step, one step of gradient descent on the latent of the edit:

    z <- z - strength * grad_z L(score(source), score(z)),    L = - sum over tokens of their rows' cosine
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from ..engine.attention import Reading, read_attention
from ..engine.autograd import plain_torch
from ..engine.nouns import Control, EditPlan, Evaluation, Prompt, Site, Step, Trajectory
from ..kernels import reduce_rows, str_rows, str_score

if TYPE_CHECKING:
    from ..backbones.protocol import Backbone

Reduction = Literal["row_sum", "frame", "layer", "global"]
StepMode = Literal["sgd", "relative"]
Heads = Literal["mean", "per_head"]
Levels = Literal["all_but_finest", "all"]
SourceScore = Literal["recompute", "inversion"]
Score = Literal["str", "maps"]

PAPER_STRENGTH = 0.01
RELATIVE_STEP = 2e-3  # of |z|, that "relative" moves the latent by at the paper's strength
HALF_LOSS_SCALE = 2.0**12  # a cosine over a whole layer has gradients below half precision's smallest number


@dataclass(frozen=True)
class STRLatentOptimizer(Control):
    """See `str_latent_optimizer`."""

    rows_worth: ClassVar[int] = 8  # a pass with gradients keeps what a pass without drops; modelled, not measured

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

    def __post_init__(self):
        if not self.strength >= 0:
            raise ValueError(f"strength must be 0 or more, got {self.strength}: 0 is the plain edit")
        if self.neighbours < 1:
            raise ValueError(f"neighbours must be 1 or more, got {self.neighbours}")
        if not 0 <= self.start <= self.end <= 1:
            raise ValueError(f"want 0 <= start <= end <= 1, shares of the run, got {self.start} and {self.end}")
        kinds = {"reduction": Reduction, "step_mode": StepMode, "heads": Heads, "levels": Levels}
        for name, kind in {**kinds, "source_score": SourceScore, "score": Score}.items():
            if getattr(self, name) not in get_args(kind):
                raise ValueError(f"no {name} '{getattr(self, name)}': want one of {', '.join(get_args(kind))}")

    def check(self, trajectory: Trajectory, backbone: Backbone) -> None:
        site_pairs(backbone, self.levels)

    def before_step(self, step: Step) -> Tensor:
        if self.strength == 0 or not self.start <= step.progress < self.end:
            return step.latents
        step.monitor.check()
        pairs = site_pairs(step.backbone, self.levels)
        earlier = step.level - 1 if self.source_score == "inversion" else step.level
        source = self._read(step, pairs, step.source_latents(earlier), step.trajectory.prompt)
        step.monitor.check()
        with torch.enable_grad():
            z = step.latents.detach().clone().requires_grad_()
            loss = self._loss(source, self._read(step, pairs, z, step.positive))
            gradient = self._gradient(loss, z)
        moved = self._move(step.latents, gradient)
        norm, size = gradient.norm().item(), step.latents.norm().item()
        moved_by = (moved - step.latents).norm().item()
        step.monitor.record(step=step.index, loss=loss.item(), gradient=norm, relative_step=moved_by / max(size, 1e-12))
        return moved

    def _read(self, step: Step, pairs, latents: Tensor, prompt: Prompt) -> list[tuple[Reading, Reading]]:
        label = step.trajectory.schedule.label(step.level)
        evaluation = Evaluation(latents[None], label, (prompt,), ("positive",), step.index)
        readings = read_attention(step.backbone, evaluation, {site.layer for pair in pairs for site in pair})
        return [(readings[spatial.layer], readings[temporal.layer]) for spatial, temporal in pairs]

    def _loss(self, source: list[tuple[Reading, Reading]], target: list[tuple[Reading, Reading]]) -> Tensor:
        if self.score == "maps":
            return sum(_map_distance(s, t) for s, t in zip(source, target))
        per_head = self.heads == "per_head"
        rows = partial(str_rows, neighbours=self.neighbours, per_head=per_head)
        statistics = [
            rows(*_score_inputs(s, per_head), *_score_inputs(t, per_head), scale=t[0].scale)
            for s, t in zip(source, target)
        ]
        return reduce_rows(statistics, self.reduction)

    def _gradient(self, loss: Tensor, z: Tensor) -> Tensor:
        (gradient,) = torch.autograd.grad(loss * HALF_LOSS_SCALE if self._tiny() else loss, z)
        if not torch.isfinite(gradient).all():
            raise ValueError(
                "the gradient of the STR loss is NaN or infinite: load the model in float32 or bfloat16, or lower "
                "the strength"
            )
        return gradient / HALF_LOSS_SCALE if self._tiny() else gradient

    def _tiny(self) -> bool:
        return self.score == "str" and self.reduction != "row_sum"

    def _move(self, z: Tensor, gradient: Tensor) -> Tensor:
        if self.step_mode == "sgd":
            return z - self.strength * gradient
        size = self.strength / PAPER_STRENGTH * RELATIVE_STEP * z.norm()
        return z - size * gradient / gradient.norm().clamp(min=1e-20)


def str_latent_optimizer(plan: EditPlan, **numbers) -> EditPlan:
    """`plan` with STR guidance added.

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
        score: "str", or "maps": the paper's baseline, squared distance of the spatial and temporal maps themselves
            (its strength there is 0.08).

    Raises:
        ValueError: a number out of range or an unknown choice.
    """
    return plan.then(STRLatentOptimizer(**numbers))


def site_pairs(backbone: Backbone, levels: Levels = "all_but_finest") -> list[tuple[Site, Site]]:
    """Spatial self-attention sites with the temporal one of the same block, in running order.

    Raises:
        ValueError: the model has no such pair at these levels.
    """
    temporal: dict[str, Site] = {}
    for site in backbone.sites:
        if site.kind == "temporal":
            temporal.setdefault(site.block, site)  # of two temporal layers in a block, the first (the paper has one)
    pairs = [(s, temporal[s.block]) for s in backbone.sites if s.kind == "spatial" and s.block in temporal]
    if not pairs:
        raise ValueError(
            f"'{backbone.name}' has no spatial attention with temporal attention beside it: STR-Match wants a "
            "text-to-video model"
        )
    if levels == "all":
        return pairs
    coarse = [pair for pair in pairs if pair[0].level > 0]
    if not coarse:
        raise ValueError(f"'{backbone.name}' has attention at the finest level only: choose levels 'all'")
    return coarse


def _score_inputs(pair: tuple[Reading, Reading], per_head: bool) -> tuple[Tensor, Tensor, Tensor]:
    """(q, k [F, H, N, D], temporal maps [N, F, F] or [H, N, F, F]) of one clip."""
    spatial, temporal = pair
    maps = _temporal_maps(temporal)
    return spatial.q[0], spatial.k[0], maps.transpose(0, 1) if per_head else maps.mean(1)


def _temporal_maps(reading: Reading) -> Tensor:
    """[N, H, F, F] softmax maps in float32; small, so they are simply made."""
    q, k = (x[0].float() if x.dtype in (torch.float16, torch.bfloat16) else x[0] for x in (reading.q, reading.k))
    return (q @ k.transpose(-1, -2) * reading.scale).softmax(-1)


def _map_distance(source: tuple[Reading, Reading], target: tuple[Reading, Reading]) -> Tensor:
    """Squared distance of head-mean spatial and temporal maps: the baseline of the paper's ablation."""
    spatial = [_spatial_maps(pair[0]) for pair in (source, target)]
    temporal = [_temporal_maps(pair[1]).mean(1) for pair in (source, target)]
    return (spatial[0] - spatial[1]).square().sum() + (temporal[0] - temporal[1]).square().sum()


def _spatial_maps(reading: Reading) -> Tensor:
    """[F, N, N] head-mean spatial maps."""
    q, k = (x[0].float() if x.dtype in (torch.float16, torch.bfloat16) else x[0] for x in (reading.q, reading.k))
    return (q @ k.transpose(-1, -2) * reading.scale).softmax(-1).mean(1)


def score_frames(
    backbone: Backbone,
    trajectory: Trajectory,
    *,
    x: float,
    y: float,
    noise: float = 0.25,
    levels: Levels = "all_but_finest",
    neighbours: int = 1,
) -> Tensor:
    """What one point of the source is related to, painted over it frame by frame.

    Args:
        x, y: the point, as shares of width and height, 0..1.
        noise: where on the trajectory to look, 0 almost clean, 1 the noisiest level.

    Returns:
        [F, H, W, 3] in 0..1: the source in gray, the score in color, the point marked in white.

    Raises:
        ValueError: a number outside its range, or a model and trajectory that do not belong together.
    """
    trajectory.require(backbone)
    if not (0 <= x <= 1 and 0 <= y <= 1 and 0 <= noise <= 1):
        raise ValueError(f"want x, y and noise in 0..1, got {x}, {y} and {noise}")
    level = max(1, round(noise * trajectory.schedule.steps))
    heat = score_heat(backbone, trajectory, (x, y), level, levels=levels, neighbours=neighbours)
    return paint_heat(backbone.decode(backbone.unscale(trajectory.latents[0])), heat, (x, y))


@plain_torch
def score_heat(
    backbone: Backbone,
    trajectory: Trajectory,
    point: tuple[float, float],
    level: int,
    *,
    levels: Levels = "all_but_finest",
    neighbours: int = 1,
) -> Tensor:
    """[F, h, w] float32 in 0..1: the STR score from one point (x, y) to every latent cell of its frame, each frame
    scaled to 1, mean over attention layers; at a noise level in 1..S."""
    pairs = site_pairs(backbone, levels)
    latents = trajectory.latents[level].to(backbone.device)
    evaluation = Evaluation(latents[None], trajectory.schedule.label(level), (trajectory.prompt,), ("source",))
    with backbone.resident("network"):
        readings = read_attention(backbone, evaluation, {site.layer for pair in pairs for site in pair})
    frames, _, *size = latents.shape
    heat = torch.zeros(frames, 1, *size)
    for spatial, temporal in pairs:
        pair = readings[spatial.layer], readings[temporal.layer]
        rows, columns = (-(-n // 2**spatial.level) for n in size)
        token = min(int(point[1] * rows), rows - 1) * columns + min(int(point[0] * columns), columns - 1)
        score = partial(str_score, *_score_inputs(pair, per_head=False), neighbours=neighbours, scale=pair[0].scale)
        maps = torch.cat([score(i, rows=torch.tensor([token])) for i in range(frames)])
        maps = maps.view(frames, 1, rows, columns).float().cpu()
        heat += F.interpolate(maps / maps.amax((2, 3), keepdim=True), size, mode="bilinear", align_corners=False)
    return heat[:, 0] / heat.amax((1, 2, 3)).clamp(min=1e-12)[:, None, None]


def paint_heat(frames: Tensor, heat: Tensor, point: tuple[float, float]) -> Tensor:
    """Frames [F, H, W, 3] in gray with heat [F, h, w] in 0..1 over them, black to red to yellow, and a white mark."""
    height, width = frames.shape[1:3]
    heat = F.interpolate(heat[:, None], (height, width), mode="bilinear", align_corners=False)[:, 0, :, :, None]
    colors = torch.cat([(2 * heat).clamp(0, 1), (2 * heat - 1).clamp(0, 1), torch.zeros_like(heat)], -1)
    painted = (0.4 * frames.mean(-1, keepdim=True) + 0.8 * colors).clamp(0, 1)
    x, y, arm = int(point[0] * (width - 1)), int(point[1] * (height - 1)), max(1, min(height, width) // 32)
    painted[:, y, max(0, x - arm) : x + arm + 1] = 1
    painted[:, max(0, y - arm) : y + arm + 1, x] = 1
    return painted
