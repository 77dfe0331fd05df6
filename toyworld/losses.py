"""The loss of the diffusion models, in which the small sprite weighs more than its share at first."""

from __future__ import annotations

from torch import Tensor


def diffusion_loss(predicted: Tensor, target: Tensor, cells: Tensor, step: int, steps: int) -> dict[str, Tensor]:
    squared = (predicted - target).square()
    sprite = (squared.detach() * cells).sum() / (cells.expand_as(squared).sum())
    weighted = (squared * sprite_weight(cells, step, steps)).mean()
    return {"loss": weighted, "mse": squared.detach().mean(), "sprite": sprite}


def sprite_weight(cells: Tensor, step: int, steps: int) -> Tensor:
    """Loss weights of mean 1: the sprite, a tenth of the cells, counts 5 times at first, once from 70 % on."""
    weight = 1 + 4 * max(0.0, 1 - step / (0.7 * steps)) * cells
    return weight / weight.mean()
