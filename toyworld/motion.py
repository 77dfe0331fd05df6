"""How things move in a toy clip, exactly: the sprite is carried along its path, the background stands still."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from . import world
from .world import Clips

Where = Literal["all", "sprite", "background"]
INSIDE = 1 - 1e-3  # coverage from which a pixel, or what is read between four of them, is all sprite


def correspondences(clips: Clips) -> tuple[Tensor, Tensor]:
    """Where every pixel of a frame is in the next one.

    Returns:
        motion: [n, F-1, H, W, 2] (x, y) in pixels from frame i to frame i + 1: the sprite's step where a pixel is at
            least half sprite, else 0.
        visible: [n, F-1, H, W] bool, whether the next frame shows it: the sprite always, the background where the
            sprite does not come to cover it.
    """
    sprite = world.sprite_alpha(clips) >= 0.5
    step = clips.center.diff(dim=1)[:, :, None, None]
    return step * sprite[:, :-1, ..., None], sprite[:, :-1] | ~sprite[:, 1:]


def warp_error(video: Tensor, clips: Clips, where: Where = "all") -> Tensor:
    """How far a video is from moving as `clips` do: flicker, and drift from the path.

    Every frame is carried along the exact motion and held against the next one, over pixels that both show. The rim
    of the sprite, where it mixes with the background, does not count. A constant picture scores well on the
    background, as does any blur: read this beside the accuracy of the edit.

    Args:
        video: [n, F, 3, 64, 64] in 0..1.
        clips: the n clips whose motion counts; for an edit, its target.
        where: "all" pixels, or those of the "sprite" or the "background" alone.

    Returns:
        [n] root mean square, in levels of 255; 0 is perfect.

    Raises:
        ValueError: video and clips do not agree, or an unknown choice.
    """
    want = [*clips.center.shape[:2], 3, world.SIZE, world.SIZE]
    if list(video.shape) != want:
        raise ValueError(f"want a video {want} for these clips, got {list(video.shape)}")
    if want[1] < 2:
        raise ValueError("a warp error needs at least 2 frames, got 1")
    video = video.detach().float().cpu()
    alpha = world.sprite_alpha(clips)
    before, after = alpha[:, :-1, None], alpha[:, 1:, None]
    step = clips.center.diff(dim=1)
    sprite = ((_carried(before, step) >= INSIDE) & (after >= INSIDE)).float()
    background = ((before == 0) & (after == 0)).float()
    squared = sprite * (video[:, 1:] - _carried(video[:, :-1], step)).square()
    squared = squared + background * (video[:, 1:] - video[:, :-1]).square()
    parts = {"all": sprite + background, "sprite": sprite, "background": background}
    if where not in parts:
        raise ValueError(f"no pixels '{where}': want one of {', '.join(parts)}")
    counted = parts[where].expand_as(squared)
    return 255 * ((squared * counted).flatten(1).sum(1) / counted.flatten(1).sum(1)).sqrt()


def _carried(frames: Tensor, step: Tensor) -> Tensor:
    """Frames [n, P, C, H, W] moved by steps [n, P, 2] (x, y) in pixels, read between pixels linearly."""
    x, y = world.pixel_grid()
    place = torch.stack([x, y], -1) - step[:, :, None, None]
    grid = (place / world.SIZE * 2 - 1).flatten(0, 1)  # pixel centres at halves, as grid_sample has them
    return F.grid_sample(frames.flatten(0, 1), grid, align_corners=False).unflatten(0, frames.shape[:2])
