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


def mean_map_backward_chunked(q: Tensor, k: Tensor, ds: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """From the gradient of one frame's head-mean map to that of its q and k, [H N D]."""
    H, N, _ = q.shape
    q, k = q.to(ds.dtype), k.to(ds.dtype)
    dq, dk = torch.empty_like(q), torch.zeros_like(k)
    for rows in row_tiles(N, H * N, tile_budget(q.device)):
        p = (q[:, rows] @ k.mT * scale).softmax(-1)
        g = ds[rows] / H
        # softmax backward; D = sum of P g needs no pass of its own, a tile holds whole rows
        p.mul_(g - torch.linalg.vecdot(p, g.expand_as(p))[..., None])
        dq[:, rows] = p @ k * scale
        dk.baddbmm_(p.mT, q[:, rows], alpha=scale)
    return dq, dk
