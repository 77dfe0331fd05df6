"""The definition: every pair of tokens is compared, then what lies outside the window is struck out."""

from __future__ import annotations

import torch
from torch import Tensor

from ..tiles import computing_dtype


def windowed_topk_reference(source: Tensor, target: Tensor, height: int, width: int, window: int, k: int):
    """`source`, `target` [P N D]: pair p asks where the tokens of source[p] are in target[p]."""
    work = computing_dtype(source.dtype)
    similarity = source.to(work) @ target.to(work).mT  # [P N N]
    place = torch.arange(height * width, device=source.device)
    row, column = place // width, place % width
    reach = window // 2
    near = ((row[:, None] - row).abs() <= reach) & ((column[:, None] - column).abs() <= reach)
    similarity = similarity.masked_fill(~near, float("-inf"))

    similarity, index = similarity.sort(dim=-1, descending=True, stable=True)  # stable: the lower place first
    missing = max(0, k - index.shape[-1])
    similarity = torch.nn.functional.pad(similarity[..., :k], (0, missing), value=float("-inf"))
    index = torch.nn.functional.pad(index[..., :k], (0, missing), value=-1)
    return index.masked_fill(similarity == float("-inf"), -1).int(), similarity
