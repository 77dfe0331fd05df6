"""Exact and lean in plain torch: tiles of source tokens against the rectangle that holds all their windows."""

from __future__ import annotations

import torch
from torch import Tensor

from ..tiles import computing_dtype

BUDGET = 2**23  # numbers held at once, 32 MB in float32


def windowed_topk_chunked(source: Tensor, target: Tensor, height: int, width: int, window: int, k: int):
    pairs, tokens, size = source.shape
    work = computing_dtype(source.dtype)
    index = torch.full((pairs, height, width, k), -1, dtype=torch.int32, device=source.device)
    similarity = torch.full((pairs, height, width, k), float("-inf"), dtype=work, device=source.device)
    source, target = (x.reshape(pairs, height, width, size) for x in (source, target))
    place = torch.arange(tokens, device=source.device).view(height, width)

    reach = window // 2
    # a tile as wide as the window compares about 4 tokens for each one it needs, in one matrix product
    tile = min(max(window, 8), 32)
    side = tile + 2 * reach
    candidates = min(side, height) * min(side, width)
    batch = max(1, BUDGET // (candidates * (size + 3 * tile * tile)))
    for top in range(0, height, tile):
        for left in range(0, width, tile):
            rows, columns = slice(top, min(top + tile, height)), slice(left, min(left + tile, width))
            near_rows = slice(max(top - reach, 0), rows.stop + reach)
            near_columns = slice(max(left - reach, 0), columns.stop + reach)
            near = place[near_rows, near_columns].flatten()
            outside = _far(place[rows, columns].flatten(), near, width, reach)
            for p in range(0, pairs, batch):
                block = slice(p, p + batch)
                mine = source[block, rows, columns].flatten(1, 2).to(work)
                theirs = target[block, near_rows, near_columns].flatten(1, 2).to(work)
                best, at = _best(torch.bmm(mine, theirs.mT).masked_fill_(outside, float("-inf")), k)
                at = near[at].masked_fill_(best == float("-inf"), -1).int()
                shape = (*source[block, rows, columns].shape[:3], -1)
                index[block, rows, columns, : at.shape[-1]] = at.view(shape)
                similarity[block, rows, columns, : at.shape[-1]] = best.view(shape)
    return index.view(pairs, tokens, k), similarity.view(pairs, tokens, k)


def _far(mine: Tensor, theirs: Tensor, width: int, reach: int) -> Tensor:
    """Which of the places `theirs` [M] lie outside the windows of the places `mine` [N]: [N M]."""
    rows = (mine[:, None] // width - theirs // width).abs()
    columns = (mine[:, None] % width - theirs % width).abs()
    return torch.maximum(rows, columns) > reach


def _best(similarity: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The `k` largest of each row, destroying it. Not `topk`: `max` promises the first of equals, `topk` does not."""
    best, at = [], []
    for _ in range(min(k, similarity.shape[-1])):
        value, place = similarity.max(dim=-1, keepdim=True)
        similarity.scatter_(-1, place, float("-inf"))
        best.append(value)
        at.append(place)
    return torch.cat(best, dim=-1), torch.cat(at, dim=-1)
