"""Exact with what is gathered within a budget: a group's mean needs no token of its own.

The logit of a mean is the mean of the logits, and a group's weight goes to its tokens in equal shares. So keys are
gathered once, for the similarities and for the logits, values once, and where they are one tensor so is the gathering.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..gather_attention.chunked import by_token, gathered, logits, weighted
from ..tiles import computing_dtype, gather_budget, row_tiles
from .reference import SMALLEST_NORM


def merged_attention_chunked(q: Tensor, k: Tensor, v: Tensor, index: Tensor, going: int | None, scale: float) -> Tensor:
    rows, heads, queries, size = q.shape
    index = F.pad(index, (0, index.shape[1] % 2), value=-1)  # so that every even place has an odd one
    if index.shape[1] == 0:
        return torch.zeros_like(q)
    keys = by_token(k)
    values = keys if v is k else by_token(v)
    work = computing_dtype(q.dtype)
    shrink = 1 / torch.linalg.vector_norm(keys, dim=-1, keepdim=True, dtype=work).clamp(min=SMALLEST_NORM)  # [R T 1]
    out = []
    for some in row_tiles(queries, rows * index.shape[1] * heads * size, gather_budget(q.device)):
        tokens, there = gathered(keys, index[some]), index[some] >= 0
        if going is None:
            to, gone = _neighbours(there, rows)
        else:
            to, gone = _bipartite(tokens, gathered(shrink, index[some])[..., 0], there, going)
        weights = _weights(logits(q[:, :, some], tokens) * scale, there, to, gone)
        tokens = tokens if values is keys else gathered(values, index[some])
        out.append(weighted(weights, tokens).to(q.dtype))
    return torch.cat(out, 2)


def _weights(z: Tensor, there: Tensor, to: Tensor, gone: Tensor) -> Tensor:
    """Of the tokens, [R H M L]: those of even places that are `gone` [R M E] share the group of an odd place `to`."""
    even, odd = z.unflatten(-1, (-1, 2)).unbind(-1)
    even_there, odd_there = there.unflatten(-1, (-1, 2)).unbind(-1)
    to, joins = to[:, None].expand_as(even), gone[:, None].to(z)
    size = (odd_there + torch.zeros_like(even[:, :1]).scatter_add(-1, to[:, :1], joins)).clamp(min=1)
    groups = (odd * odd_there).scatter_add(-1, to, even * joins) / size
    stays = even_there & ~gone[:, None]
    lowest = torch.finfo(z.dtype).min
    both = torch.cat([even.masked_fill(~stays, lowest), groups.masked_fill(~odd_there, lowest)], -1)
    even, odd = both.softmax(-1).chunk(2, -1)
    odd = odd * odd_there / size
    return torch.stack([torch.where(stays, even, odd.gather(-1, to) * joins), odd], -1).flatten(-2)


@torch.no_grad()
def _bipartite(k: Tensor, shrink: Tensor, there: Tensor, going: int) -> tuple[Tensor, Tensor]:
    """The odd place [R M E] that each token at an even one would join, and whether it does.

    A token's own length changes nothing about whom it is most like, so the whole of [R M E O] is touched three times.
    """
    barred = torch.zeros_like(there, dtype=k.dtype).masked_fill_(~there, float("-inf"))[:, None, 1::2]
    even, odd = k[:, :, 0::2].flatten(0, 1), k[:, :, 1::2].flatten(0, 1)
    products = torch.baddbmm(barred.repeat(len(k), 1, 1), even, odd.mT).unflatten(0, k.shape[:2])
    best, to = products.mul_(shrink[:, :, None, 1::2]).max(-1)
    best = (best * shrink[:, :, 0::2]).masked_fill(~there[:, 0::2], float("-inf"))
    first = best.sort(dim=-1, descending=True, stable=True).indices[..., :going]
    return to, torch.zeros_like(best, dtype=torch.bool).scatter_(-1, first, True) & (best > float("-inf"))


def _neighbours(there: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    even, odd = there.unflatten(-1, (-1, 2)).unbind(-1)
    to = torch.arange(even.shape[-1], device=there.device)
    return to.expand(rows, *even.shape), (even & odd).expand(rows, *even.shape)
