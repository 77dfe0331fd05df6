"""Clicks and boxes to masks, frame by frame.

paper    Segment Anything, Kirillov et al. 2023; SAM 2, Ravi et al. 2024
needs    a segmenter, frames, and prompts at some of them
gives    a mask for each frame that has prompts: no other, for a mask that nobody asked for would be an empty one
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from ..engine.autograd import ordinary, plain_torch
from ..engine.monitor import SILENT, Monitor
from .ports import Candidates, Prompts, Segmenter
from .prompts import Asked, check_prompts
from .show import overlay

Choice = Literal["best", "smallest", "largest"]


@dataclass(frozen=True, eq=False)
class Segmented:
    """Masks of the frames that were asked about."""

    masks: Tensor  # [P, H, W] of 0 and 1
    frames: tuple[int, ...]  # P numbers, in order
    scores: tuple[float, ...]  # what the model thinks of each; the worst of a frame's things
    pictures: Tensor  # [P, H, W, 3] in 0..1: the frames with mask, points and boxes on them


@plain_torch
def segment(
    segmenter: Segmenter, frames: Tensor, asked: Asked, *, choice: Choice = "best", monitor: Monitor = SILENT
) -> Segmented:
    """One mask for each frame with prompts: all its things together.

    Args:
        frames: [F, H, W, 3] in 0..1.
        asked: from `read_prompts`.
        choice: of the candidates for a lone click that hold it: the one with the best score, or the smallest or
            largest.

    Raises:
        ValueError: a prompt outside the picture, a frame the clip does not have, or a prompt for which the model
            finds nothing.
    """
    check_clip(frames)
    if choice not in get_args(Choice):
        raise ValueError(f"no choice '{choice}': want one of {', '.join(get_args(Choice))}")
    if not asked:
        raise ValueError("no point and no box")
    check_prompts(asked, frames)
    masks, scores, pictures = [], [], []
    for done, (k, things) in enumerate(asked.items()):
        monitor.check()
        frame = frame_of(frames, k)
        ask, mask, score = segmenter.look(frame), torch.zeros(frame.shape[:2], dtype=torch.bool), 1.0
        for prompts in things:
            found, sure = choose(ask(prompts), prompts, choice)
            if not found.any():
                raise ValueError(f"{segmenter.name} finds nothing at {_place(prompts)} of frame {k}: click elsewhere")
            mask, score = mask | found, min(score, sure)
        masks.append(mask.float())
        scores.append(score)
        pictures.append(overlay(frame, mask, things))
        monitor.progress(done + 1, len(asked))
    return Segmented(torch.stack(masks), tuple(asked), tuple(scores), torch.stack(pictures))


def choose(candidates: Candidates, prompts: Prompts, choice: Choice = "best") -> tuple[Tensor, float]:
    """(mask [H, W] bool, its score) of the best, smallest or largest candidate: see `index_of`."""
    i = index_of(candidates, prompts, choice)
    return candidates.masks[i].cpu(), candidates.scores[i].item()


def index_of(candidates: Candidates, prompts: Prompts, choice: Choice = "best") -> int:
    """Of the candidates that are not empty, the best, smallest or largest that fits the points: close to a border a
    model may think best of the neighbour. A score counts by the share of what is around each point that is as it should
    be, which forgives a mask that misses a point by a pixel."""
    masks = candidates.masks.cpu()
    areas = masks.flatten(1).sum(1).float()
    fit = torch.ones(len(masks))
    for points, on in ((prompts.points, True), (prompts.not_points, False)):
        for x, y in points:
            fit = fit * (_around(masks, x, y) == on).float().flatten(1).mean(1)
    filled = areas > 0
    if (filled & (fit > 0)).any():
        filled = filled & (fit > 0)
    else:
        fit = torch.ones_like(fit)
    rank = {"best": candidates.scores.float().cpu().clamp(min=0) * fit, "smallest": -areas, "largest": areas}[choice]
    return torch.where(filled, rank, -torch.inf).argmax().item()


def _around(masks: Tensor, x: float, y: float) -> Tensor:
    """[M, 3, 3], less at the edge: the masks at a place and around it."""
    row, column = (min(max(round(v), 0), size - 1) for v, size in ((y, masks.shape[1]), (x, masks.shape[2])))
    return masks[:, max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2]


def check_clip(frames: Tensor) -> None:
    if frames.ndim != 4 or frames.shape[-1] != 3 or not len(frames):
        raise ValueError(f"want frames [F, H, W, 3], got {list(frames.shape)}")


def frame_of(frames: Tensor, k: int) -> Tensor:
    """One frame [H, W, 3] of a clip; ValueError if it holds NaN or infinity."""
    frame = ordinary(frames[k])
    if not torch.isfinite(frame).all():
        raise ValueError(f"frame {k} holds NaN or infinity")
    return frame


def _place(prompts: Prompts) -> str:
    if prompts.box is not None:
        return "the box " + ",".join(f"{v:g}" for v in prompts.box)
    return "the point " + ",".join(f"{v:g}" for v in prompts.points[0])
