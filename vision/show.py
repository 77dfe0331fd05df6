"""Masks, points and boxes drawn onto frames, to be looked at."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .ports import Box, Prompts

TINT, ON, OFF = (1.0, 0.0, 0.8), (0.0, 1.0, 0.2), (1.0, 0.0, 0.1)
SHARE = 0.55  # of the tint, inside a mask


def overlay(frame: Tensor, mask: Tensor, things: Sequence[Prompts] = ()) -> Tensor:
    """[H, W, 3] on the CPU: the frame with its mask [H, W] tinted, positive points green, negative ones red, boxes
    green."""
    tinted = torch.lerp(frame, frame.new_tensor(TINT), (SHARE * mask.to(frame))[..., None])
    boxes = [prompts.box for prompts in things if prompts.box is not None]
    points = [(point, ON) for prompts in things for point in prompts.points]
    return drawn(tinted, boxes, points + [(point, OFF) for prompts in things for point in prompts.not_points])


def overlays(frames: Tensor, masks: Tensor) -> Tensor:
    """[F, H, W, 3] the same of a clip [F, H, W, 3] with a mask [F, H, W] for each frame."""
    return torch.stack([overlay(frame, mask) for frame, mask in zip(frames, masks)])


def drawn(frame: Tensor, boxes: Sequence[Box], points: Sequence[tuple] = ()) -> Tensor:
    """[H, W, 3] float32 on the CPU: a copy of a frame, with boxes and ((x, y), color) points; later ones on top."""
    import cv2

    picture = frame.to("cpu", torch.float32, copy=True).contiguous().numpy()
    height, width = picture.shape[:2]
    side = min(height, width)
    for left, top, right, bottom in boxes:  # a box may end where the picture does, one beyond the last pixel
        corner = min(round(right), width - 1), min(round(bottom), height - 1)
        cv2.rectangle(picture, (round(left), round(top)), corner, ON, max(1, side // 256))
    for (x, y), color in points:
        cv2.circle(picture, (round(x), round(y)), max(1, side // 100), color, cv2.FILLED)
    return torch.from_numpy(picture)
