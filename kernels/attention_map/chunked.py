from __future__ import annotations

import torch
from torch import Tensor

from ..tiles import computing_dtype, row_tiles, tile_budget


def attention_map_chunked(q: Tensor, k: Tensor, scale: float) -> Tensor:
    """The reference, a few query rows at a time: per-head maps exist for one tile only."""
    (G, H, P, _), N = q.shape, k.shape[2]
    out = torch.empty(G, P, N, dtype=computing_dtype(q.dtype), device=q.device)
    for g in range(G):
        keys = k[g].to(out.dtype).mT * scale
        for rows in row_tiles(P, H * N, tile_budget(q.device)):
            out[g, rows] = (q[g, :, rows].to(out.dtype) @ keys).softmax(-1).mean(0)
    return out
