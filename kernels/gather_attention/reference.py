"""The definition: gather everything, then ordinary attention."""

from __future__ import annotations

import torch
from torch import Tensor

from ..lists import Lists
from ..tiles import computing_dtype


def gather_attention_reference(q: Tensor, k: Tensor, v: Tensor, lists: Lists, scale: float) -> Tensor:
    """q [R H M D], k, v [R H T D] -> [R H M D]."""
    work = computing_dtype(q.dtype)
    padding = lists.index < 0
    listed = lists.index.clamp(min=0).long()
    logits = torch.einsum("rhmd,rhmld->rhml", q.to(work), k[:, :, listed].to(work)) * scale
    weights = logits.masked_fill(padding, torch.finfo(work).min).softmax(-1)  # finite: lists may be all padding,
    weights = weights.masked_fill(padding, 0.0)  # and give zeros, with no NaN on the way back either
    return torch.einsum("rhml,rhmld->rhmd", weights, v[:, :, listed].to(work)).to(q.dtype)
