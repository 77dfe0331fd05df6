"""Clips beside each other."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

GAP = 4  # pixels between two clips


def side_by_side(*clips: Tensor) -> Tensor:
    """[F, H, W, 3] of clips [F, H, W, 3]: as long as the longest, whose shorter ones hold their last frame, and as high
    as the highest, the others enlarged to it.

    Raises:
        ValueError: something that is no clip.
    """
    for clip in clips:
        if clip.ndim != 4 or clip.shape[-1] != 3 or not clip.numel():
            raise ValueError(f"want clips of frames with 3 colors, got {' x '.join(map(str, clip.shape))} numbers")
    frames, height = (max(clip.shape[axis] for clip in clips) for axis in (0, 1))
    gap = torch.ones(frames, height, GAP, 3)
    parts = [_sized(clip.float().cpu(), frames, height) for clip in clips]
    return torch.cat([piece for part in parts for piece in (gap, part)][1:], 2)


def _sized(clip: Tensor, frames: int, height: int) -> Tensor:
    held = torch.cat([clip, clip[-1:].expand(frames - len(clip), -1, -1, -1)])
    if clip.shape[1] == height:
        return held
    size = height, round(clip.shape[2] * height / clip.shape[1])
    return F.interpolate(held.movedim(-1, 1), size, mode="nearest").movedim(1, -1)
