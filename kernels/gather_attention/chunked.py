"""Exact, a few queries at a time, so that what is gathered stays within a budget.

What is gathered are tokens with all their heads, as they lie. Laying heads apart would copy it; products with queries
that are zero but for one head's channels compute H times too much, and take half the time on a CPU.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..lists import Lists
from ..tiles import computing_dtype, gather_budget, row_tiles

VECTOR = 16  # numbers that a CPU takes at once: softmax of fewer is 18 times as slow as of as many


def gather_attention_chunked(q: Tensor, k: Tensor, v: Tensor, lists: Lists, scale: float) -> Tensor:
    """q [R H M D], k, v [R H T D] -> [R H M D]."""
    rows, heads, queries, size = q.shape
    keys = by_token(k)
    values = keys if v is k else by_token(v)
    out = []
    for some in row_tiles(queries, rows * heads * lists.index.shape[1] * size, gather_budget(q.device)):
        index = lists.index[some]
        tokens, padding = gathered(keys, index), None if lists.full else (index < 0)[:, None]
        weights = softmax(logits(q[:, :, some], tokens, scale), padding)
        tokens = tokens if values is keys else gathered(values, index)
        out.append(weighted(weights, tokens).to(q.dtype))
    return torch.cat(out, dim=2)


def by_token(x: Tensor) -> Tensor:
    """[R H T D] -> [R T H D], the last two as one."""
    return x.transpose(1, 2).flatten(2)


def gathered(tokens: Tensor, index: Tensor) -> Tensor:
    """[R T ...] -> [R M L ...] in the dtype to compute in; padding gets some token."""
    found = tokens.index_select(1, index.clamp(min=0).flatten())
    return found.to(computing_dtype(tokens.dtype)).unflatten(1, index.shape)


def logits(q: Tensor, keys: Tensor, scale: float) -> Tensor:
    """[R M H L] of q [R H M D] and gathered keys [R M L C]."""
    q = q.to(keys.dtype).transpose(1, 2)  # [R M H D] -> [R M H C], zero but for a head's own channels
    apart = q[:, :, :, None] * torch.eye(q.shape[2], dtype=q.dtype, device=q.device).mul_(scale)[..., None]
    return apart.flatten(3) @ keys.mT


def softmax(z: Tensor, padding: Tensor | None) -> Tensor:
    """Over the last axis but for what is `padding`; zeros where all is, with no NaN on the way back either."""
    lowest, length = torch.finfo(z.dtype).min, z.shape[-1]
    if padding is not None:
        z = z.masked_fill(padding, lowest)
    if length < VECTOR and z.device.type == "cpu":
        z = pad(z, (0, VECTOR - length), value=lowest)
    weights = z.softmax(-1)[..., :length]
    return weights if padding is None else weights.masked_fill(padding, 0.0)


def weighted(weights: Tensor, values: Tensor) -> Tensor:
    """[R H M D], the sums of gathered values [R M L C] by weights [R M H L]."""
    sums = (weights @ values).unflatten(-1, (weights.shape[2], -1))  # [R M H H D], of which a head wants its own
    return sums.diagonal(dim1=2, dim2=3).permute(0, 3, 1, 2)
