"""The STR score to be looked at: what one point of the source is related to, frame by frame.

paper    STR-Match, Lee et al. 2025, equations 2-4
needs    a model with spatial and temporal self-attention side by side; the source's trajectory
gives    pictures
differs  nothing: it is the score that `str_match` matches, of one token
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from ..engine.autograd import ordinary, plain_torch
from ..engine.call import Call, Evaluation
from ..engine.evaluate import evaluate_with
from ..engine.monitor import SILENT, Monitor
from ..engine.plan import PLAIN
from ..engine.ports import Backbone, Predict
from ..engine.probe import read_calls
from ..engine.source import Noised, Trajectory
from ..engine.words import SOURCE, Prompt
from ..kernels import str_score
from .str_inputs import Levels, paired, score_inputs, site_pairs

SHOWN = 4  # noise levels that are looked at, evenly spaced, besides the one that is asked for


@dataclass(frozen=True, eq=False)
class Seen:
    """What one point is related to, in the source and in an edit of it, at each resolution and at some noise levels."""

    painted: Tensor  # [F, H, W, 3] in 0..1: the source in gray, the score in color, the point as a cross
    clips: dict[str, Tensor]  # "source", and "edit" if there is one: frames [F, H, W, 3] in 0..1
    heat: Tensor  # [F, rows h, columns w] in 0..1: rows are resolutions of each clip, columns noise levels
    resolutions: list[int]  # of the attention, as `Site.level` counts them
    levels: list[int]  # of noise, of those that the trajectory has
    first: int  # the index in `levels` of the one that was asked for


@plain_torch
def look(
    backbone: Backbone,
    trajectory: Trajectory,
    point: tuple[float, float],
    *,
    noise: float = 0.25,
    edit: tuple[Tensor, Prompt] | None = None,
    levels: Levels = "all_but_finest",
    neighbours: int = 1,
    monitor: Monitor = SILENT,
) -> Seen:
    """What one point is related to, in all that a viewer shows.

    Args:
        point: (x, y) as shares of width and height, 0..1.
        noise: where on the trajectory to look first, 0 almost clean, 1 the noisiest level.
        edit: latents of an edit of the clip, as `backbone.codec.encode` gives them, and the prompt that describes it.
            It is looked at in the very noise that the source has at a level: near what a sampler saw there, not that.
        levels, neighbours: as in `STRLatentOptimizer`.

    Raises:
        ValueError: a number outside its range, a model and trajectory that do not belong together, or an edit of
            another size or model.
    """
    level = _level(backbone, trajectory, point, noise)
    steps = trajectory.schedule.steps
    at = sorted({level, *(max(1, round(steps * k / SHOWN)) for k in range(1, SHOWN + 1))})
    latents = {"source": backbone.codec.unscale(trajectory.at(0))}
    sources: dict[str, Callable[[int], Trajectory]] = {"source": lambda k: trajectory}
    if edit is not None:
        latents["edit"] = edit[0]
        sources["edit"] = _in_noise_of(backbone, trajectory, *edit)
    found = {}
    for name, k in product(sources, at):
        found[name, k] = list(_layer_heat(backbone, sources[name](k), point, k, levels, neighbours))
        monitor.progress(len(found), len(sources) * len(at))
    resolutions = sorted({resolution for resolution, _ in found["source", level]})
    rows = list(product(sources, resolutions))
    columns = [torch.cat([_mean(h for r, h in found[name, k] if r == own) for name, own in rows], 1) for k in at]
    clips = {name: backbone.codec.decode(z) for name, z in latents.items()}
    span = _frames_of(backbone, len(columns[0]))
    painted = paint_heat(clips["source"], _mean(heat for _, heat in found["source", level])[span], point)
    return Seen(painted, clips, torch.cat(columns, 2)[span], resolutions, at, at.index(level))


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
    return _mean(heat for _, heat in _layer_heat(backbone, trajectory, point, level, levels, neighbours))


def _level(backbone: Backbone, trajectory: Trajectory, point: tuple[float, float], noise: float) -> int:
    """The level of a trajectory at a share of the noise, once all is as it should be."""
    backbone.require(trajectory)
    x, y = point
    if not (0 <= x <= 1 and 0 <= y <= 1 and 0 <= noise <= 1):
        raise ValueError(f"want x, y and noise in 0..1, got {x}, {y} and {noise}")
    return max(1, round(noise * trajectory.schedule.steps))


def _frames_of(backbone: Backbone, latent_frames: int) -> list[int]:
    """The latent frame of each frame of the clip: one may stand for several."""
    return [t for t in range(latent_frames) for _ in backbone.denoiser.layout.span(t)]


def _in_noise_of(backbone: Backbone, source: Trajectory, edit: Tensor, prompt: Prompt) -> Callable[[int], Trajectory]:
    """An edited clip in the noise that the source has at a level in 1..S."""
    backbone.require_prompt(prompt, source.shape[0])
    clean = backbone.codec.scale(ordinary(edit)).to("cpu", torch.float32)
    if clean.shape != source.shape:
        raise ValueError(f"the edit's latents are {list(clean.shape)} and the source's {list(source.shape)}")
    schedule = source.schedule

    def noisy(level: int) -> Noised:
        eps = (source.at(level) - schedule.signal[level] * source.at(0)) / schedule.noise[level]
        return Noised(clean, eps, schedule, prompt)

    return noisy


def _layer_heat(backbone, trajectory, point, level, levels, neighbours) -> Iterator[tuple[int, Tensor]]:
    """(resolution, [F, h, w] scaled to 1 in each frame) of each pair of attention layers."""
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
    for (spatial, _), pair in zip(pairs, paired(pairs, calls)):
        _, rows, columns = denoiser.grid(spatial, latents.shape)
        token = min(int(point[1] * rows), rows - 1) * columns + min(int(point[0] * columns), columns - 1)
        score = partial(str_score, *score_inputs(pair, per_head=False), neighbours=neighbours, scale=pair[0].scale)
        maps = torch.cat([score(i, rows=torch.tensor([token])) for i in range(frames)])
        maps = _to_one(maps.view(frames, rows, columns).float().cpu())
        yield spatial.level, F.interpolate(maps[:, None], size, mode="bilinear", align_corners=False)[:, 0]


def _mean(heats: Iterable[Tensor]) -> Tensor:
    """[F, h, w] of several, scaled as they are."""
    return _to_one(sum(heats))


def _to_one(heat: Tensor) -> Tensor:
    """Each frame of [F, h, w] scaled to 1."""
    return heat / heat.amax((1, 2), keepdim=True).clamp(min=1e-12)


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
