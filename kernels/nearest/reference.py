"""The definition: every cosine, and the place of the largest."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..tiles import computing_dtype

SMALLEST_NORM = 1e-12


def nearest_reference(here: Tensor, there: Tensor, pairs: Sequence[tuple[int, int]]) -> Tensor:
    here, there = (
        torch.nn.functional.normalize(x.to(computing_dtype(x.dtype)), dim=-1, eps=SMALLEST_NORM) for x in (here, there)
    )
    return torch.stack([(here[g] @ there[m].mT).argmax(-1) for g, m in pairs])


def shrink(there: Tensor) -> Tensor:
    """[M T] what a product with each token is multiplied with to be, up to the other's length, a cosine."""
    lengths = torch.linalg.vector_norm(there, dim=-1, dtype=computing_dtype(there.dtype))
    return 1 / lengths.clamp(min=SMALLEST_NORM)
