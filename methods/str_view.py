"""The STR score to be looked at: what one point of the source is related to, frame by frame.

paper    STR-Match, Lee et al. 2025, equations 2-4
needs    a model with spatial and temporal self-attention side by side; the source's trajectory
gives    pictures
differs  nothing: it is the score that `str_match` matches, of one token
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from ..engine.autograd import plain_torch
from ..engine.call import Call, Evaluation
from ..engine.evaluate import evaluate_with
from ..engine.plan import PLAIN
from ..engine.ports import Backbone, Predict
from ..engine.probe import read_calls
from ..engine.source import Trajectory
from ..engine.words import SOURCE
from ..kernels import str_score
from .str_match import Levels, paired, score_inputs, site_pairs


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
    backbone.require(trajectory)
    if not (0 <= x <= 1 and 0 <= y <= 1 and 0 <= noise <= 1):
        raise ValueError(f"want x, y and noise in 0..1, got {x}, {y} and {noise}")
    level = max(1, round(noise * trajectory.schedule.steps))
    heat = score_heat(backbone, trajectory, (x, y), level, levels=levels, neighbours=neighbours)
    layout = backbone.denoiser.layout
    heat = heat[[t for t in range(len(heat)) for _ in layout.span(t)]]  # a latent frame may be several of the clip
    return paint_heat(backbone.codec.decode(backbone.codec.unscale(trajectory.at(0))), heat, (x, y))


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
    denoiser, schedule = backbone.denoiser, trajectory.schedule
    pairs = site_pairs(denoiser, levels)
    latents = trajectory.at(level).to(denoiser.device)
    evaluation = Evaluation(latents[None], schedule.label(level), (trajectory.prompt,), (SOURCE,))
    layers = {site.layer for pair in pairs for site in pair}

    def body(predict: Predict) -> Mapping[str, Call]:
        return read_calls(partial(evaluate_with, predict), evaluation, PLAIN, SOURCE, layers)

    reserve = denoiser.bytes(1, len(latents), tuple(latents.shape[-2:]))
    told = {"reserve": reserve, "beside": trajectory.beside}
    calls = denoiser.session([trajectory.prompt], trajectory.at(0), schedule, body, **told)
    frames, _, *size = latents.shape
    heat = torch.zeros(frames, 1, *size)
    for (spatial, _), pair in zip(pairs, paired(pairs, calls)):
        _, rows, columns = denoiser.grid(spatial, latents.shape)
        token = min(int(point[1] * rows), rows - 1) * columns + min(int(point[0] * columns), columns - 1)
        score = partial(str_score, *score_inputs(pair, per_head=False), neighbours=neighbours, scale=pair[0].scale)
        maps = torch.cat([score(i, rows=torch.tensor([token])) for i in range(frames)])
        maps = maps.view(frames, 1, rows, columns).float().cpu()
        heat += F.interpolate(
            maps / maps.amax((2, 3), keepdim=True).clamp(min=1e-12), size, mode="bilinear", align_corners=False
        )
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
