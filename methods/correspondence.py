"""Correspondence: what is where in the other frames, read off the features of the model that will edit.

paper    COVE, Wang et al. 2024, section 3.2 and equations 7-10; the features are those of DIFT, Tang et al. 2023
needs    a model with a decoder; the source's latents
gives    a Correspondence, and pictures of it
differs  nothing where the paper is clear. It says of the layer both "intermediate" (section 4.1) and "final" (appendix
         C): ours is the last but one, as the 64x64 grid and the operation counts of its table 4 want. The window is
         clipped at the borders; the noise is the same for all frames

Noise of a small timestep is put on every frame, the network is run once, and the features of one decoder stage are
compared by cosine similarity within a window of the next and the previous frame.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from typing import get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from ..engine.autograd import ordinary, plain_torch
from ..engine.beside import parts_of
from ..engine.call import Evaluation, Run
from ..engine.correspondence import Correspondence
from ..engine.evaluate import evaluate_with
from ..engine.inversion import Noise
from ..engine.monitor import SILENT, Monitor
from ..engine.plan import PLAIN
from ..engine.ports import Backbone, Denoiser, Predict
from ..engine.probe import read_feature
from ..engine.words import SOURCE, Block, Model, Prompt
from ..kernels import windowed_topk

STAGES = 4  # of Stable Diffusion's decoder, which up_block counts as DIFT does
FINE_STEPS = 500  # a schedule whose labels are near every timestep
FRAMES_AT_ONCE = 8  # of models whose frames do not see each other: features are larger than the table
SMALLEST_NORM = 1e-6


@plain_torch
def correspondence(
    backbone: Backbone,
    latents: Tensor,
    *,
    timestep: int = 261,
    window: int = 9,
    top_k: int = 3,
    up_block: int = 2,
    ensemble: int = 1,
    noise: Noise = "shared",
    seed: int = 0,
    monitor: Monitor = SILENT,
) -> Correspondence:
    """Matches every place of every frame in the next and in the previous frame.

    Args:
        latents: the source clip as `backbone.codec.encode` gives it, at least 2 frames.
        timestep: of the noise put on the frames, 0..999; the model's nearest is taken.
        window: side of the square searched around a place, in places of the feature grid; odd. Motion from frame to
            frame of more than half of it is lost.
        top_k: matches per place.
        up_block: which stage of the decoder to read, as DIFT counts Stable Diffusion's four: 3 is the last, 2 the one
            before, 1 (half the resolution) the one before that. A model with fewer stages is counted from its last,
            and where it has none left its first is taken.
        ensemble: draws of the noise whose features are averaged.
        noise: "shared" by all frames, or each its own, "per_frame".
        seed: of the noise, drawn on the CPU.
        monitor: progress and cancel.

    Raises:
        ValueError: a number out of range, latents of another model, fewer than 2 frames, or a model without a decoder.
    """
    if not 0 <= timestep <= 999:
        raise ValueError(f"want a timestep in 0..999, got {timestep}")
    if ensemble < 1:
        raise ValueError(f"want 1 draw of the noise or more, got {ensemble}")
    if noise not in get_args(Noise):
        raise ValueError(f"no noise '{noise}': want one of {', '.join(get_args(Noise))}")
    denoiser, prompt = backbone.denoiser, backbone.text.embed("")
    picture, _ = parts_of(backbone, latents)
    clean = backbone.codec.scale(ordinary(picture)).to(denoiser.device, torch.float32)
    if len(clean) < 2:
        raise ValueError(f"matching wants a clip of at least 2 frames, got {len(clean)}")
    block = decoder_stage(denoiser, up_block)
    generator = torch.Generator().manual_seed(seed)
    shape = (ensemble, 1 if noise == "shared" else len(clean), *clean.shape[1:])
    eps = torch.randn(shape, generator=generator).to(clean).expand(-1, len(clean), -1, -1, -1)

    part = FRAMES_AT_ONCE if denoiser.framewise else len(clean)
    schedule = denoiser.schedule(FINE_STEPS)
    level = 1 + min(range(schedule.steps), key=lambda i: abs(schedule.timesteps[i] - timestep))

    def body(predict: Predict) -> Correspondence:
        found, alike, last, grid = ([], []), ([], []), None, None
        for features in _features(denoiser, predict, clean, eps, level, prompt, block, part, monitor):
            grid = tuple(features.shape[-2:])
            tokens = F.normalize(features, dim=1, eps=SMALLEST_NORM).flatten(2).mT
            tokens = tokens if last is None else torch.cat([last, tokens])
            last = tokens[-1:]
            if len(tokens) > 1:
                for i, direction in enumerate(("forward", "backward")):
                    table, cosine = windowed_topk(tokens, *grid, window=window, k=top_k, direction=direction)
                    found[i].append(table.cpu())
                    alike[i].append(cosine.half().cpu())
        cosines = tuple(map(torch.cat, alike))
        return Correspondence(*map(torch.cat, found), grid, block.level, window, denoiser.fingerprint, cosines)

    reserve = denoiser.bytes(1, part, tuple(clean.shape[-2:]))
    return denoiser.session([prompt], clean, schedule, body, reserve=reserve)


def decoder_stage(model: Model, up_block: int) -> Block:
    """The stage that DIFT's number means in this model: see `correspondence`."""
    if up_block not in range(1, STAGES):
        raise ValueError(f"no up_block {up_block}: want 1, 2 or 3, the last")
    stages = [block for block in model.blocks if block.kind == "stage"]
    if not stages:
        raise ValueError(f"'{model.name}' has no decoder stages whose features could be matched")
    return stages[max(0, len(stages) - STAGES + up_block)]


def _features(
    denoiser: Denoiser,
    predict: Predict,
    clean: Tensor,
    eps: Tensor,
    level: int,
    prompt: Prompt,
    block: Block,
    part: int,
    monitor: Monitor,
) -> Iterator[Tensor]:
    """[f, C, h, w] float32 of so many frames at a time, mean over the draws `eps` [E, F, C, h, w]."""
    schedule, evaluate = denoiser.schedule(FINE_STEPS), partial(evaluate_with, predict)
    for first in range(0, len(clean), part):
        at = slice(first, first + part)
        frames = tuple(range(len(clean)))[at]
        total = 0
        for draw in eps:
            monitor.check()
            latents = schedule.noised(clean[at], draw[at], level)
            picture, label = clean[at] if denoiser.sees_source else None, schedule.label(level)
            run = Run(monitor=monitor)
            evaluation = Evaluation(latents[None], label, (prompt,), (SOURCE,), image=picture, frames=frames, run=run)
            total = total + read_feature(evaluate, evaluation, PLAIN, block)[0].float()
        monitor.progress(frames[-1] + 1, len(clean))
        yield total / len(eps)


# ---- pictures -------------------------------------------------------------------------------------------------------

POINT_COLOR = (1.0, 0.1, 0.1)
RANK_COLORS = ((1.0, 0.9, 0.1), (0.1, 0.9, 0.2), (0.2, 0.4, 1.0), (1.0, 0.3, 0.9), (0.2, 0.9, 0.9))  # best first
SMALLEST_PICTURE = 256  # pixels, the shorter side: a place must be seen


def match_frames(found: Correspondence, frames: Tensor, points: list[tuple[float, float]], frame: int = 0) -> Tensor:
    """The K matches of some points in all frames, as the paper draws them: yellow the best, then green and blue.

    Args:
        frames: [F, H, W, 3] in 0..1, the source.
        points: (x, y) as shares of width and height, 0..1.
        frame: which frame the points are in; there they are red.

    Returns:
        [F, H', W', 3] in 0..1, enlarged by a whole number if small. A place of the grid is a frame around its pixels.

    Raises:
        ValueError: frames of another clip, no points, or points or a frame outside their range.
    """
    if len(frames) != found.frames:
        raise ValueError(f"the correspondence is for {found.frames} frames, and there are {len(frames)} pictures")
    if not points or not all(0 <= x <= 1 and 0 <= y <= 1 for x, y in points):
        raise ValueError(f"want points with x and y in 0..1, got {points}")
    h, w = found.grid
    places = torch.tensor([min(int(y * h), h - 1) * w + min(int(x * w), w - 1) for x, y in points])
    matches = found.matches(frame, places)
    grow = -(-SMALLEST_PICTURE // min(frames.shape[1:3]))
    painted = ordinary(frames).repeat_interleave(grow, 1).repeat_interleave(grow, 2)
    for number, picture in enumerate(painted):
        for rank in reversed(range(1 if number == frame else found.top_k)):
            color = POINT_COLOR if number == frame else RANK_COLORS[rank % len(RANK_COLORS)]
            for place in matches[number, :, rank].tolist():
                if place >= 0:
                    _outline(picture, divmod(place, w), (h, w), color)
    return painted


def as_pictures(table: Tensor, grid: tuple[int, int]) -> Tensor:
    """[F-1, h, w K, 3] in 0..1: a table of places [F-1, N, K] as pictures of 8 bits, for a browser to look up in.

    A place is red + 256 green + 65536 blue, and all white is no match.
    """
    rows = table.cpu().reshape(len(table), grid[0], -1, 1)
    digits = torch.cat([rows % 256, rows // 256 % 256, rows // 65536 % 256], -1)
    return (torch.where(rows < 0, 255, digits).float() + 0.5) / 255.5


def cosines_as_pictures(table: Tensor, grid: tuple[int, int]) -> Tensor:
    """[F-1, h, w K, 3] in 0..1, gray: the cosine of each match, -1 black and 1 white; see `as_pictures`."""
    rows = table.float().clamp(-1, 1).reshape(len(table), grid[0], -1, 1)
    return ((rows + 1) / 2).expand(-1, -1, -1, 3)


def parse_points(text: str, size: tuple[int, int]) -> list[tuple[float, float]]:
    """ "0.5 0.5; 0.25 0.75" -> [(0.5, 0.5), (0.25, 0.75)]; or JSON of pixels, [{"x": 32, "y": 20}], as masks take it.

    Args:
        size: (height, width) of the frames, in pixels.

    Raises:
        ValueError: anything but points.
    """
    if text.strip().startswith("["):
        try:
            return [((p["x"] + 0.5) / size[1], (p["y"] + 0.5) / size[0]) for p in json.loads(text)]
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f'want points as [{{"x": 32, "y": 20}}], in pixels, got \'{text}\'') from error
    try:
        pairs = [tuple(float(n) for n in part.replace(",", " ").split()) for part in text.split(";") if part.strip()]
    except ValueError:
        pairs = [()]
    if any(len(pair) != 2 for pair in pairs):
        raise ValueError(f"want points as 'x y; x y', shares of width and height in 0..1, got '{text}'")
    return pairs


def _outline(picture: Tensor, place: tuple[int, int], grid: tuple[int, int], color: tuple[float, float, float]) -> None:
    """Draws the border of a place of the grid into a picture [H, W, 3]."""
    (top, bottom), (left, right) = (
        (size * at // cells, max(size * (at + 1) // cells, size * at // cells + 1))
        for size, at, cells in zip(picture.shape[:2], place, grid)
    )
    wide = max(1, min(bottom - top, right - left) // 6)
    cell = picture[top:bottom, left:right]
    inside = cell[wide:-wide, wide:-wide].clone()
    cell[:] = torch.tensor(color)
    cell[wide:-wide, wide:-wide] = inside
