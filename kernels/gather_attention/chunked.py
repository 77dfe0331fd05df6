"""Exact, a few queries at a time, so that what is gathered stays within a budget.

What is gathered are tokens with all their heads, as they lie. Laying heads apart would copy it; products with queries
that are zero but for one head's channels compute H times too much, and take half the time on a CPU.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..tiles import computing_dtype, gather_budget, row_tiles


def gather_attention_chunked(q: Tensor, k: Tensor, v: Tensor, index: Tensor, scale: float) -> Tensor:
    """q [R H M D], k, v [R H T D], index [M L] with -1 for padding -> [R H M D]."""
    rows, heads, queries, size = q.shape
    keys = by_token(k)
    values = keys if v is k else by_token(v)
    out = []
    for some in row_tiles(queries, rows * heads * index.shape[1] * size, gather_budget(q.device)):
        tokens = gathered(keys, index[some])
        padding = index[some] < 0
        z = logits(q[:, :, some], tokens) * scale
        weights = z.masked_fill(padding, torch.finfo(z.dtype).min).softmax(-1)  # finite: lists may be all padding,
        weights = weights.masked_fill(padding, 0.0)  # and give zeros, with no NaN on the way back either
        tokens = tokens if values is keys else gathered(values, index[some])
        out.append(weighted(weights, tokens).to(q.dtype))
    return torch.cat(out, dim=2)


def by_token(x: Tensor) -> Tensor:
    """[R H T D] -> [R T H D], the last two as one."""
    return x.transpose(1, 2).flatten(2)


def gathered(tokens: Tensor, index: Tensor) -> Tensor:
    """[R T C] -> [R M L C] in the dtype to compute in; padding gets some token."""
    found = tokens.index_select(1, index.clamp(min=0).flatten())
    return found.to(computing_dtype(tokens.dtype)).view(len(tokens), *index.shape, tokens.shape[-1])


def logits(q: Tensor, keys: Tensor) -> Tensor:
    """[R H M L] of q [R H M D] and gathered keys [R M L C]."""
    q = q.to(keys.dtype).transpose(1, 2)  # [R M H D] -> [R M C H], zero but for a head's own channels
    apart = q[..., None] * torch.eye(q.shape[2], dtype=q.dtype, device=q.device)[:, None]
    return (keys @ apart.flatten(2, 3)).permute(0, 3, 1, 2)


def weighted(weights: Tensor, values: Tensor) -> Tensor:
    """[R H M D], the sums of gathered values [R M L C] by weights [R H M L]."""
    heads = weights.shape[1]
    sums = (weights.transpose(1, 2) @ values).unflatten(-1, (heads, -1))  # [R M H H D], of which a head wants its own
    return sums.diagonal(dim1=2, dim2=3).permute(0, 3, 1, 2)
