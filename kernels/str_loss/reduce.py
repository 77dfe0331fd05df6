from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

Reduction = Literal["row_sum", "frame", "layer", "global"]
EPSILON = 1e-8


def reduce_rows(rows: Tensor | Sequence[Tensor], reduction: Reduction = "row_sum") -> Tensor:
    """The loss: minus the sum of the cosines between source and target score, over the units of `reduction`.

    Args:
        rows: [..., F, N, 3] row statistics (ab, aa, bb) of one layer, or a list with those of several layers.
        reduction: what one cosine spans: "row_sum" a row (one pixel of one frame), "frame" all rows of a frame,
            "layer" all rows of a layer, "global" all rows of all layers. Heads, if any, count as more rows.
    Returns:
        a scalar. A unit in which either score vanishes (norm up to 1e-8) adds 0, to the loss and to the gradient.
    Raises:
        ValueError: unknown reduction, no rows, or a wrong shape.
    STR-Match does not say what its cosine spans; a row is the default because only a sum over rows gives a gradient
    that a step of 0.01 turns into a visible change.
    """
    layers = [rows] if isinstance(rows, Tensor) else list(rows)
    if reduction not in get_args(Reduction):
        raise ValueError(f"reduction={reduction!r} is not one of {', '.join(get_args(Reduction))}")
    if not layers:
        raise ValueError("there are no rows to reduce")
    for layer in layers:
        if layer.ndim < 3 or layer.shape[-1] != 3:
            raise ValueError(f"want row statistics [..., F, N, 3], got {list(layer.shape)}")
    if reduction == "global":
        return -_cosines(sum(layer.flatten(0, -2).sum(0) for layer in layers))
    return -sum(_cosines(_units(layer, reduction)).sum() for layer in layers)


def _units(rows: Tensor, reduction: Reduction) -> Tensor:
    if reduction == "row_sum":
        return rows
    if reduction == "layer":
        return rows.flatten(0, -2).sum(0)
    return rows.transpose(-3, 0).flatten(1, -2).sum(1)


def _cosines(units: Tensor) -> Tensor:
    ab, aa, bb = units.unbind(-1)
    alive = (aa > EPSILON**2) & (bb > EPSILON**2)
    # replace, do not clamp: a clamped norm would still pass 1e8 times the source score on as gradient
    ab, aa, bb = torch.where(alive, ab, 0), torch.where(alive, aa, 1), torch.where(alive, bb, 1)
    return ab / (aa.sqrt() * bb.sqrt())
