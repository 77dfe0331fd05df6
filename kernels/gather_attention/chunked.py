"""The reference, a few queries at a time, so that what is gathered stays within a byte budget."""

from __future__ import annotations

import torch
from torch import Tensor

from ..tiles import row_tiles
from .reference import gather_attention_reference

BUDGET = 2**22  # gathered numbers held at once per operand, 16 MB in float32


def gather_attention_chunked(q: Tensor, k: Tensor, v: Tensor, index: Tensor, scale: float) -> Tensor:
    rows, queries, size = q.shape
    parts = row_tiles(queries, rows * index.shape[1] * size, BUDGET)
    return torch.cat([gather_attention_reference(q[:, some], k, v, index[some], scale) for some in parts], dim=1)
