"""Exact and lean in plain torch: the M-step is a sum over tokens, so they can come a few at a time.

At temperature 0.01 logits lie hundreds apart, and most of Z would be numbers too small for float to hold in full
(denormals), with which a CPU counts many times slower. They are kept from falling that far, and a base that has nothing
but such weights gets none.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import threshold

from ..tiles import computing_dtype, row_tiles, tile_budget
from .reference import directions

MARGIN = 2.0**14  # of the least weight, over the smallest number that is held in full: its products are, too


def em_sums_chunked(
    tokens: Tensor, values: Tensor, bases: Tensor, temperature: float, eps: float
) -> tuple[Tensor, Tensor]:
    rows, count, _ = bases.shape
    work = computing_dtype(tokens.dtype)
    toward = directions(bases, temperature, eps, work).mT
    totals = None
    least = torch.finfo(work).tiny * MARGIN
    for some in row_tiles(tokens.shape[1], rows * count, tile_budget(tokens.device)):
        logits = torch.bmm(tokens[:, some].to(work), toward)
        z = logits.clamp_(min=logits.detach().amax(-1, keepdim=True).add_(math.log(least))).softmax(-1)
        new = torch.bmm(z.mT, values[:, some].to(work)), z.sum(1)
        totals = new if totals is None else tuple(map(torch.add, totals, new))
    sums, mass = totals
    return sums, threshold(mass, 2 * least * tokens.shape[1], 0.0)
