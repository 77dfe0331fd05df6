"""The definition, with Z in full."""

from __future__ import annotations

import torch
from torch import Tensor

from ..tiles import computing_dtype


def em_sums_reference(
    tokens: Tensor, values: Tensor, bases: Tensor, temperature: float, eps: float
) -> tuple[Tensor, Tensor]:
    """tokens [R T D], values [R T W], bases [R K D] -> Z^T values [R K W], mass [R K]."""
    work = computing_dtype(tokens.dtype)
    z = (tokens.to(work) @ directions(bases, temperature, eps, work).mT).softmax(-1)  # [R T K]
    return z.mT @ values.to(work), z.sum(dim=1)


def directions(bases: Tensor, temperature: float, eps: float, dtype: torch.dtype) -> Tensor:
    """What tokens are multiplied with to give the logits."""
    bases = bases.to(dtype)
    return bases / ((bases.norm(dim=-1, keepdim=True) + eps) * temperature)
