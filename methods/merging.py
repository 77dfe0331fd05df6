"""Token merging in lists: of each query's own list of tokens, similar ones become their mean.

paper    ToMe, Bolya et al. 2023, bipartite soft matching, which COVE (Wang et al. 2024, equation 12) applies along time
needs    gathered tokens [..., L, C] and which of them are there
gives    fewer tokens, and which of those are there
differs  COVE does not say how the two sets are chosen; ours alternate along the list as ToMe's do (frames ascending,
         matches of a frame best first). The size of a group has no term in the softmax, as in COVE
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def merge_bipartite(keys: Tensor, values: Tensor, there: Tensor, ratio: float) -> tuple[Tensor, Tensor, Tensor]:
    """The ratio of L tokens at even places that are most like one at an odd place join it.

    Args:
        keys, values: [..., L, C] tokens; it is the keys that are compared, by cosine.
        there: [..., L] bool, False for padding.
        ratio: 0..1 of all tokens; at most those at even places can go.

    Returns:
        keys, values [..., L - int(ratio L), C] and which of them are there.
    """
    metric = F.normalize(keys, dim=-1, eps=1e-6)
    similarity = metric[..., 0::2, :] @ metric[..., 1::2, :].mT
    from_there, to_there = there[..., 0::2], there[..., 1::2]
    similarity = similarity.masked_fill(~(from_there[..., None] & to_there[..., None, :]), float("-inf"))
    going = min(int(ratio * keys.shape[-2]), similarity.shape[-2])
    best, to = similarity.max(-1)
    order = best.sort(descending=True, stable=True).indices
    gone, kept = order[..., :going], order[..., going:]
    joins = F.one_hot(to.gather(-1, gone), similarity.shape[-1]).to(keys)  # [..., gone, odd]
    joins = joins * from_there.gather(-1, gone)[..., None]
    size = to_there + joins.sum(-2)

    def merged(x: Tensor) -> Tensor:
        even, odd = x[..., 0::2, :], x[..., 1::2, :]
        total = odd * to_there[..., None] + joins.mT @ _rows(even, gone)
        return torch.cat([_rows(even, kept), total / size.clamp(min=1)[..., None]], -2)

    left = torch.cat([from_there.gather(-1, kept), size > 0], -1)
    new_keys = merged(keys)
    return new_keys, new_keys if values is keys else merged(values), left


def merge_pairs(keys: Tensor, values: Tensor, there: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """The tokens of two frames that follow each other in the list and have one rank become their mean.

    Args:
        rank: K, tokens a frame in the list; L is a multiple of it.

    Returns:
        keys, values [..., ceil(L / K / 2) * K, C] and which of them are there.
    """
    odd = keys.shape[-2] // rank % 2 * rank  # a last frame without another stays as it is
    weight = F.pad(there, (0, odd)).to(keys).unflatten(-1, (-1, 2, rank))
    size = weight.sum(-2)

    def merged(x: Tensor) -> Tensor:
        pairs = F.pad(x, (0, 0, 0, odd)).unflatten(-2, (-1, 2, rank))
        return ((pairs * weight[..., None]).sum(-3) / size.clamp(min=1)[..., None]).flatten(-3, -2)

    new_keys = merged(keys)
    return new_keys, new_keys if values is keys else merged(values), (size > 0).flatten(-2)


def _rows(x: Tensor, at: Tensor) -> Tensor:
    """x [..., L, C] at places [..., M] -> [..., M, C]."""
    return x.gather(-2, at[..., None].expand(*at.shape, x.shape[-1]))
