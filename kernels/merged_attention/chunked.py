"""Exact with what is gathered within a budget: a group's mean needs no token of its own.

The logit of a mean is the mean of the logits, and a group's weight goes to its tokens in equal shares. So keys are
gathered once, for the similarities and for the logits, values once, and where they are one tensor so is the gathering.
A list's even places are laid before its odd ones, so that both are slices.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..gather_attention.chunked import by_token, gather_attention_chunked, gathered, logits, softmax, weighted
from ..lists import Lists
from ..tiles import computing_dtype, gather_budget, row_tiles
from .reference import SMALLEST_NORM


def merged_attention_chunked(q: Tensor, k: Tensor, v: Tensor, lists: Lists, going: int | None, scale: float) -> Tensor:
    rows, heads, queries, size = q.shape
    length = lists.index.shape[1]
    if length < 2 or going == 0:
        return gather_attention_chunked(q, k, v, lists, scale)
    index = torch.cat([lists.index[:, 0::2], lists.index[:, 1::2]], 1)
    keys = by_token(k)
    values = keys if v is k else by_token(v)
    work = computing_dtype(q.dtype)
    shrink = 1 / torch.linalg.vector_norm(keys, dim=-1, dtype=work).clamp(min=SMALLEST_NORM)  # [R T]
    out = []
    for some in row_tiles(queries, rows * length * heads * size, gather_budget(q.device)):
        tokens, padding = gathered(keys, index[some]), None if lists.full else index[some] < 0
        if going is None:
            to, gone = _neighbours(index[some], rows)
        else:
            to, gone = _bipartite(tokens, gathered(shrink, index[some]), padding, going)
        weights = _weights(logits(q[:, :, some], tokens, scale), padding, to, gone)
        tokens = tokens if values is keys else gathered(values, index[some])
        out.append(weighted(weights, tokens).to(q.dtype))
    return torch.cat(out, 2)


def _weights(z: Tensor, padding: Tensor | None, to: Tensor, gone: Tensor) -> Tensor:
    """Of the tokens, [R M H E+O]: those of even places that are `gone` [R M E] share the group of an odd place `to`."""
    places = to.shape[-1], z.shape[-1] - to.shape[-1]
    even, odd = z.split(places, -1)
    joins, at = gone.to(z), to[:, :, None].expand_as(even)
    share = 1 / torch.ones_like(odd[:, :, 0]).scatter_add(-1, to, joins)[:, :, None]  # [R M 1 O]
    groups = odd.scatter_add(-1, at, even * joins[:, :, None]) * share
    even = even.masked_fill(gone[:, :, None], torch.finfo(z.dtype).min)
    even, odd = softmax(torch.cat([even, groups], -1), None if padding is None else padding[:, None]).split(places, -1)
    odd = odd * share
    return torch.cat([even + odd.gather(-1, at) * joins[:, :, None], odd], -1)


@torch.no_grad()
def _bipartite(k: Tensor, shrink: Tensor, padding: Tensor | None, going: int) -> tuple[Tensor, Tensor]:
    """The odd place [R M E] that each token at an even one would join, and whether it does.

    A token's own length changes nothing about whom it is most like, so the whole of [R M E O] is touched three times.
    """
    even = -(-k.shape[2] // 2)
    products = torch.bmm(k[:, :, :even].flatten(0, 1), k[:, :, even:].flatten(0, 1).mT).unflatten(0, k.shape[:2])
    products.mul_(shrink[:, :, None, even:])
    if padding is not None:
        products.masked_fill_(padding[:, None, even:], float("-inf"))
    best, to = products.max(-1)
    best.mul_(shrink[:, :, :even])
    if padding is not None:
        best.masked_fill_(padding[:, :even], float("-inf"))
    first = best.sort(dim=-1, descending=True, stable=True).indices[..., :going]
    gone = torch.zeros_like(best, dtype=torch.bool).scatter_(-1, first, True)
    return to, gone if padding is None else gone & (best > float("-inf"))


def _neighbours(index: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    even, odd = index.tensor_split([-(-index.shape[-1] // 2)], -1)
    to = torch.arange(even.shape[-1], device=index.device).clamp(max=odd.shape[-1] - 1)  # a last one has no neighbour
    gone = (even >= 0) & torch.nn.functional.pad(odd >= 0, (0, even.shape[-1] - odd.shape[-1]))
    return to.expand(rows, *even.shape), gone.expand(rows, *even.shape)
