"""The definition: gather everything, merge it, then ordinary attention."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..lists import Lists
from ..tiles import computing_dtype

SMALLEST_NORM = 1e-6


def merged_attention_reference(
    q: Tensor, k: Tensor, v: Tensor, lists: Lists, going: int | None, scale: float
) -> Tensor:
    """q [R H M D], k, v [R H T D], -> [R H M D]; `going` None merges neighbours."""
    work = computing_dtype(q.dtype)
    there, listed = lists.index >= 0, lists.index.clamp(min=0).long()
    keys, values = (x.to(work).transpose(1, 2)[:, listed] for x in (k, v))  # [R M L H D]
    joined = joins(keys.flatten(-2), there.expand(len(q), *there.shape), going)
    keys, left = merged(keys, there, joined)
    values, _ = merged(values, there, joined)
    logits = torch.einsum("rhmd,rmlhd->rhml", q.to(work), keys) * scale
    weights = logits.masked_fill(~left[:, None], torch.finfo(work).min).softmax(-1)
    weights = weights.masked_fill(~left[:, None], 0.0)
    return torch.einsum("rhml,rmlhd->rhmd", weights, values).to(q.dtype)


def joins(keys: Tensor, there: Tensor, going: int | None) -> Tensor:
    """Which token at an even place joins which at an odd one: [... E O] bool, from keys [... L C], there [... L]."""
    both = there[..., 0::2, None] & there[..., None, 1::2]
    if going is None:
        return both & torch.eye(*both.shape[-2:], dtype=torch.bool, device=both.device)
    if both.shape[-1] == 0:
        return both
    unit = F.normalize(keys, dim=-1, eps=SMALLEST_NORM)
    similarity = unit[..., 0::2, :] @ unit[..., 1::2, :].mT
    best, to = similarity.masked_fill(~both, float("-inf")).max(-1)
    rank = best.sort(dim=-1, descending=True, stable=True).indices.argsort(-1)
    gone = (rank < going) & (best > float("-inf"))
    return F.one_hot(to, both.shape[-1]).bool() & gone[..., None]


def merged(x: Tensor, there: Tensor, joined: Tensor) -> tuple[Tensor, Tensor]:
    """[R M E+O H D] and which are there [R M E+O]: tokens at even places that stay, then the groups' means."""
    even, odd = x[:, :, 0::2], x[:, :, 1::2]
    stay = there[..., 0::2] & ~joined.any(-1)
    joined = joined.to(x)
    size = there[..., 1::2] + joined.sum(-2)
    total = odd * there[..., 1::2, None, None] + torch.einsum("rmeo,rmehd->rmohd", joined, even)
    means = total / size.clamp(min=1)[..., None, None]
    return torch.cat([even, means], 2), torch.cat([stay, size > 0], -1)
