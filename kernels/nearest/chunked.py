"""One product for each set of `there` with all sets it is compared to, a few tokens at a time."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..tiles import computing_dtype, gather_budget, row_tiles
from .reference import shrink


def nearest_chunked(here: Tensor, there: Tensor, pairs: Sequence[tuple[int, int]]) -> Tensor:
    there = there.to(computing_dtype(there.dtype)) * shrink(there)[..., None]
    out = torch.empty(len(pairs), here.shape[1], dtype=torch.int64, device=here.device)
    for m in sorted({m for _, m in pairs}):
        mine = [p for p, pair in enumerate(pairs) if pair[1] == m]
        tokens = here[[pairs[p][0] for p in mine]].flatten(0, 1)
        parts = row_tiles(len(tokens), there.shape[1], gather_budget(here.device))
        found = [(tokens[some].to(there.dtype) @ there[m].mT).argmax(-1) for some in parts]
        out[mine] = torch.cat(found).view(len(mine), -1)
    return out
