"""Masks, points and boxes drawn onto frames, to be looked at."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .ports import Box, Point, Prompts

TINT, ON, OFF = (1.0, 0.0, 0.8), (0.0, 1.0, 0.2), (1.0, 0.0, 0.1)
SHARE = 0.55  # of the tint, inside a mask


def overlay(frame: Tensor, mask: Tensor, things: Sequence[Prompts] = ()) -> Tensor:
    """[H, W, 3]: the frame with its mask [H, W] tinted, positive points green, negative ones red, boxes green."""
    picture = torch.lerp(frame, frame.new_tensor(TINT), (SHARE * mask.to(frame))[..., None])
    for prompts in things:
        if prompts.box is not None:
            draw_box(picture, prompts.box)
        for point in prompts.points:
            _draw_point(picture, point, ON)
        for point in prompts.not_points:
            _draw_point(picture, point, OFF)
    return picture


def draw_box(picture: Tensor, box: Box, color: tuple[float, float, float] = ON) -> None:
    """A frame of lines on a picture [H, W, 3], in place."""
    height, width = picture.shape[:2]
    thick = max(1, min(height, width) // 256)
    left, right = (min(max(round(v), 0), width - 1) for v in (box[0], box[2]))
    top, bottom = (min(max(round(v), 0), height - 1) for v in (box[1], box[3]))
    color = picture.new_tensor(color)
    picture[top : top + thick, left : right + 1] = color
    picture[max(bottom + 1 - thick, 0) : bottom + 1, left : right + 1] = color
    picture[top : bottom + 1, left : left + thick] = color
    picture[top : bottom + 1, max(right + 1 - thick, 0) : right + 1] = color


def _draw_point(picture: Tensor, point: Point, color: tuple[float, float, float]) -> None:
    height, width = picture.shape[:2]
    radius = max(1, min(height, width) // 100)
    x, y = round(point[0]), round(point[1])
    picture[max(y - radius, 0) : y + radius + 1, max(x - radius, 0) : x + radius + 1] = picture.new_tensor(color)
