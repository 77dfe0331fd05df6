"""Does a clip of a scene hang together? Asked of the pixels, with no truth but which colors were named."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from . import world
from .measure_scenes import find_things
from .reading import SMALLEST, centroids, match_background
from .scenes import Scenes

NEAR = 2  # pixels around a thing that are no background


def steadiness(video: Tensor, drawn: Scenes) -> dict[str, Tensor]:
    """How steady clips of the captions of `drawn` are. Things count in frames where none touches another.

    Args:
        video: [n, F, 3, 64, 64] in 0..1.

    Returns:
        One [n] float32 tensor a measure, NaN where nothing can be asked (one frame; no such thing):
        twice: share of the named colors that are there in more than one piece.
        bend_px: mean change of a thing's step from one frame to the next; 0 on a straight line at a steady pace.
        flicker: mean absolute change of a background pixel from one frame to the next, in 255ths.
    """
    video = video.detach().float().cpu()
    things = find_things(video, world.render_background(match_background(video)))
    grown = F.max_pool2d(things.blob.flatten(0, 1).float(), 2 * NEAR + 1, stride=1, padding=NEAR)
    grown = grown.unflatten(0, video.shape[:2])  # [n, F, 6, H, W]
    apart = (grown.sum(2).amax((2, 3)) < 2)[..., None]
    named = torch.zeros(len(video), len(world.COLORS)).scatter_add_(1, drawn.color, drawn.shown.float()) > 0
    counted = things.found & named[:, None] & apart  # [n, F, 6]
    place = centroids(things.blob.flatten(0, 1).float().clamp(min=1e-9)).unflatten(0, video.shape[:2])
    bends = place.diff(n=2, dim=1).norm(dim=-1)
    in_row = counted[:, 2:] & counted[:, 1:-1] & counted[:, :-2]
    ground = (grown.amax(2) == 0).float()
    both = (ground[:, 1:] * ground[:, :-1]).flatten(1)
    change = video.diff(dim=1).abs().mean(2).flatten(1) * 255
    return {
        "twice": _mean(_pieces(things.blob) > 1, counted),
        "bend_px": _mean(bends, in_row),
        "flicker": (change * both).sum(1) / both.sum(1),
    }


def _pieces(blob: Tensor) -> Tensor:
    """[n, F, 6]: how many connected pieces, none so small that it is no thing, each mask [n, F, 6, H, W] has."""
    import cv2

    counts = []
    for mask in blob.flatten(0, 2).byte().numpy():
        areas = cv2.connectedComponentsWithStats(mask)[2][1:, cv2.CC_STAT_AREA] if mask.any() else ()
        counts.append(sum(area >= SMALLEST for area in areas))
    return torch.tensor(counts).view(blob.shape[:3])


def _mean(values: Tensor, counted: Tensor) -> Tensor:
    """[n]: the mean of the values that are counted, over all axes but the first; NaN where none is."""
    return (values * counted).flatten(1).sum(1) / counted.flatten(1).sum(1)
