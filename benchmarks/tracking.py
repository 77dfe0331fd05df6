"""Is the sprite followed from frame to frame? PCK from its exact motion, for whatever says where a place goes."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from ..engine.correspondence import Correspondence
from ..toyworld import world

CORRECT = 0.5  # of the sprite's radius
KEYPOINTS = torch.tensor([[0, 0], [0.5, 0], [-0.5, 0], [0, 0.5], [0, -0.5]])  # of the radius, from the sprite's centre
Hop = Callable[[int, Tensor], Tensor]  # (frame, cells of it) -> those cells in the next frame


def pck(clips: world.Clips, cells: int, hop: Hop) -> dict[str, float]:
    """Shares of the sprite's keypoints that are followed to within half its radius, on a grid of `cells` a side."""
    center, radius, size = clips.center[0], clips.radius[0], world.SIZE / cells
    correct = {"pck_next": [], "pck_all": []}
    for frame in range(len(center) - 1):
        points = center[frame] + KEYPOINTS * radius
        cell = (points / size).long().clamp(0, cells - 1)
        at, within = cell[:, 1] * cells + cell[:, 0], points - cell * size
        for other in range(frame + 1, len(center) if frame == 0 else frame + 2):
            at = hop(other - 1, at)
            there = torch.stack([at % cells, at // cells], -1) * size + within
            right = (there - points - (center[other] - center[frame])).norm(dim=-1) <= CORRECT * radius
            correct["pck_next"] += [right] if other == frame + 1 else []
            correct["pck_all"] += [right] if frame == 0 else []
    return {name: torch.cat(values).float().mean().item() for name, values in correct.items()}


def by_features(found: Correspondence) -> tuple[int, Hop]:
    return found.grid[1], lambda frame, at: found.forward[frame, at, 0].long()


def by_flow(clips: world.Clips, enlarge: int) -> tuple[int, Hop]:
    """OpenCV's dense inverse search flow at its finest preset, read at the nearest pixel and rounded to it."""
    import cv2

    frames = F.interpolate(world.render(clips)[0][0], scale_factor=enlarge, mode="bilinear")
    gray = [cv2.cvtColor((f.movedim(0, -1) * 255).byte().numpy(), cv2.COLOR_RGB2GRAY) for f in frames]
    dis = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    flows = [torch.from_numpy(dis.calc(a, b, None)) for a, b in pairwise(gray)]
    side = frames.shape[-1]

    def hop(frame: int, at: Tensor) -> Tensor:
        moved = torch.stack([at % side, at // side], -1) + flows[frame][at // side, at % side].round().long()
        moved = moved.clamp(0, side - 1)
        return moved[:, 1] * side + moved[:, 0]

    return side, hop


def by_standing() -> tuple[int, Hop]:
    return world.SIZE, lambda frame, at: at
