"""Reads clips back: where the sprite is and what it looks like, and which background is behind it.

The renderer is the only model. Everything runs on the CPU in float32.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from . import world
from .world import Clips

CONTRAST = 0.25  # a pixel belongs to a sprite where some channel differs from the background by more
SMALLEST = 40  # pixels; the smallest sprite the world draws covers 170
LEAST_OVERLAP = 0.5  # intersection over union under which a blob has no shape at all
WINDOW = 40  # pixels around a centroid in which shapes are compared; a sprite spans at most 27
POOL = 4  # backgrounds are compared at 16x16: stripes are 8 pixels wide, and the search is 16 times faster


@dataclass(frozen=True)
class Sprites:
    """What stands out of the background, for each frame."""

    found: Tensor  # [n, F] bool
    centroid: Tensor  # [n, F, 2] (x, y) in pixels, 0 where none was found
    color: Tensor  # [n, F] index into COLORS, -1 where none was found
    shape: Tensor  # [n, F] index into SHAPES, -1 where none was found or the blob resembles no shape
    value: Tensor  # [n, F, 3] median color in 0..1, 0 where none was found
    blob: Tensor  # [n, F, 40, 40] of 0 and 1, the centroid in the middle; 0 where none was found


def find_sprites(video: Tensor, background: Tensor) -> Sprites:
    """The largest connected blob of each frame that differs from the background.

    Args:
        video: [n, F, 3, 64, 64] in 0..1.
        background: [n, 3, 64, 64] in 0..1.
    """
    import cv2

    n, frames = video.shape[:2]
    differs = ((video - background[:, None]).abs().amax(2) > CONTRAST).byte().numpy()
    found = torch.zeros(n, frames, dtype=torch.bool)
    centroid, median = torch.zeros(n, frames, 2), torch.zeros(n, frames, 3)
    window, area = torch.zeros(n, frames, WINDOW, WINDOW), torch.zeros(n, frames)
    for at in product(range(n), range(frames)):
        _, labels, stats, centers = cv2.connectedComponentsWithStats(differs[at], connectivity=4)
        areas = stats[1:, cv2.CC_STAT_AREA]  # component 0 is the background
        if not len(areas) or areas.max() < SMALLEST:
            continue
        largest = 1 + int(areas.argmax())
        blob = (labels == largest).astype("uint8")
        core = cv2.erode(blob, None)  # 3x3; off the anti-aliased edge
        median[at] = video[at][:, torch.from_numpy(core if core.any() else blob).bool()].median(1).values
        found[at], area[at] = True, float(areas.max())
        centroid[at] = torch.from_numpy(centers[largest]).float() + 0.5  # from pixel indices to pixel_grid's centres
        window[at] = windows(torch.from_numpy(blob)[None], centroid[at][None])[0]
    color = torch.cdist(median, world.COLOR_VALUES.expand(n, -1, -1)).argmin(-1)
    shape = best_shape(window.flatten(0, 1), area.flatten()).view(n, frames)
    none = torch.tensor(-1)
    return Sprites(found, centroid, color.where(found, none), shape.where(found, none), median, window)


def best_shape(window: Tensor, area: Tensor) -> Tensor:
    """[m] index into SHAPES of blobs [m, WINDOW, WINDOW] that cover `area` pixels in all; -1 where nothing overlaps."""
    shape, template = _templates()
    common = window.flatten(1) @ template.T
    overlap = common / (area[:, None] + template.sum(1) - common)
    best, index = overlap.max(1)
    return shape[index].where(best >= LEAST_OVERLAP, torch.tensor(-1))


def windows(blobs: Tensor, centers: Tensor) -> Tensor:
    """[m, WINDOW, WINDOW]: blobs [m, H, W], each cut out around its center (x, y) [m, 2]."""
    padded = F.pad(blobs, (WINDOW // 2,) * 4)
    places = centers.round().int().tolist()
    return torch.stack([b[y : y + WINDOW, x : x + WINDOW] for b, (x, y) in zip(padded, places)])


@lru_cache(maxsize=1)
def _templates() -> tuple[Tensor, Tensor]:
    """(shape [k], pictures [k, WINDOW^2]) of every sprite with its centroid near the window's centre.

    Radii are those the world draws and a little more; shifts cover the rounding of the window and a ragged edge.
    """
    shifts = torch.arange(-1.5, 1.6, 0.5)
    shape, radius, dx, dy = torch.cartesian_prod(
        torch.arange(len(world.SHAPES)).float(), torch.arange(9, 13.1, 0.5), shifts, shifts
    ).T
    k, middle = len(shape), torch.tensor(world.SIZE / 2)
    zeros = torch.zeros(k, dtype=torch.long)
    clips = Clips(shape.long(), zeros, zeros, zeros, radius, torch.zeros(k, 2), zeros, middle.expand(k, 1, 2))
    offset = centroids(world.sprite_alpha(clips)) - middle  # a triangle's centroid is not the centre it is drawn at
    center = middle - offset + torch.stack([dx, dy], -1)[:, None]
    alpha = world.sprite_alpha(replace(clips, center=center))[:, 0]
    margin = (world.SIZE - WINDOW) // 2
    return shape.long(), (alpha[:, margin:-margin, margin:-margin] > 0.5).float().flatten(1)


def centroids(alpha: Tensor) -> Tensor:
    """[n, F, 2] (x, y) in pixels of masks [n, F, H, W]."""
    grid = torch.stack(world.pixel_grid(), -1)
    return torch.einsum("nfhw,hwc->nfc", alpha, grid) / alpha.sum((2, 3))[..., None]


def match_background(video: Tensor) -> Clips:
    """n clips whose background is the best match to that of video [n, F, 3, 64, 64]; their sprites mean nothing.

    The absolute difference forgives the few pixels that a slow sprite covers in half of the frames or more.
    """
    choices, pictures = _backgrounds()
    still = F.avg_pool2d(video.median(1).values, POOL).flatten(1)
    return choices[torch.cdist(still, pictures, p=1).argmin(1)]


@lru_cache(maxsize=1)
def _backgrounds() -> tuple[Clips, Tensor]:
    """(k clips, pictures [k, 3 * 16 * 16]): every background the world draws, phases in steps of one pixel."""
    plain, gradient, striped, checkered = range(len(world.PATTERNS))
    either, orientations, halves, whole = (0, 16), range(3), range(16), range(32)
    kinds = [  # (pattern, orientation, phase x, phase y)
        (plain, 0, 0, 0),
        *product([gradient], orientations, [0], either),
        *product([striped], orientations, halves, [0]),
        *product([checkered], [0], halves, whole),  # half a period in x inverts it, as half a period in y does
    ]
    background, kind = zip(*product(range(len(world.BACKGROUNDS)), kinds))
    background, kind = torch.tensor(background), torch.tensor(kind)
    k, zeros = len(kind), torch.zeros(len(kind), dtype=torch.long)
    clips = Clips(
        shape=zeros,
        color=zeros,
        background=background,
        pattern=kind[:, 0],
        radius=torch.ones(k),
        phase=kind[:, 2:].float(),
        orientation=kind[:, 1],
        center=torch.zeros(k, 1, 2),
    )
    parts = (clips[i : i + 256] for i in range(0, k, 256))
    return clips, torch.cat([F.avg_pool2d(world.render_background(part), POOL).flatten(1) for part in parts])
