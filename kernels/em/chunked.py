"""Exact and lean in plain torch: the M-step is a sum over tokens, so they can come a few at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from ..tiles import computing_dtype, row_tiles
from .reference import directions

BUDGET = 2**22  # responsibilities held at once, 16 MB in float32


def em_sums_chunked(
    tokens: Tensor, values: Tensor, bases: Tensor, temperature: float, eps: float
) -> tuple[Tensor, Tensor]:
    rows, count, _ = bases.shape
    work = computing_dtype(tokens.dtype)
    toward = directions(bases, temperature, eps, work).mT
    sums = torch.zeros(rows, count, values.shape[-1], dtype=work, device=tokens.device)
    mass = torch.zeros(rows, count, dtype=work, device=tokens.device)
    for some in row_tiles(tokens.shape[1], rows * count, BUDGET):
        z = torch.bmm(tokens[:, some].to(work), toward).softmax(-1)
        sums = torch.baddbmm(sums, z.mT, values[:, some].to(work))
        mass = mass + z.sum(dim=1)
    return sums, mass
