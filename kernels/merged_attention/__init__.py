"""Attention of every query to its own list of tokens, once those of a list that resemble each other are merged: COVE's.

Tokens at even places of a list may join one at an odd place. A group is the mean of its tokens and enters the softmax
as one token, without a term for its size.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from ..dispatch import Backend, choose, fused_or
from ..lists import Lists, check_tokens
from .chunked import merged_attention_chunked
from .reference import merged_attention_reference

Matching = Literal["bipartite", "neighbours"]
MAX_HEAD = 256
MAX_LIST = 256


def merged_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lists: Lists | Tensor,
    *,
    ratio: float = 0.5,
    matching: Matching = "bipartite",
    scale: float | None = None,
    backend: Backend = "auto",
) -> Tensor:
    """softmax(q . merge(k[list]) * scale) merge(v[list]), each query's own list merged by itself.

    Args:
        q: [R H M D] queries; rows and heads share the lists, and the heads of a row the merging.
        k, v: [R H T D] tokens of all frames.
        lists: [M L] integers in [-1, T), -1 for padding: see `gather_attention`.
        ratio: share of a list's L places that is merged away, 0..1, by "bipartite"; at most the even places can go.
        matching: "bipartite" (ToMe, Bolya et al. 2023): the int(ratio L) tokens at even places that are most like one
            at an odd place, by the cosine of their keys over all heads, join it; of equals the lower place. A token
            whose list has nothing at odd places stays. "neighbours": places 2 i and 2 i + 1 are one, with no matching.
        scale: logit scale. Default: D ** -0.5.
    Returns:
        [R H M D], in the dtype of q; zeros where a list is all padding. Inside, float32 (float64 for float64).
    Raises:
        ValueError: shapes, dtypes or devices do not fit together, or a number is out of range.

    The Triton kernel has no backward.
    """
    check_tokens(q, k, v)
    if q.ndim != 4:
        raise ValueError(f"want q [R H M D], got {[*q.shape]}")
    if not 0 <= ratio <= 1:
        raise ValueError(f"want a ratio in 0..1, got {ratio}")
    if matching not in get_args(Matching):
        raise ValueError(f"no matching {matching!r}: want one of {', '.join(get_args(Matching))}")
    if not isinstance(lists, Lists):
        lists = Lists(lists, k.shape[-2])
    lists.require(q, k)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    going = int(ratio * lists.index.shape[1]) if matching == "bipartite" else None
    chosen = choose(backend, q, _obstacle(q, k, v, lists.index))
    if chosen == "triton":
        fused = fused_or(merged_attention_chunked, "merged_attention.fused", "merged_attention_fused", backend)
        with torch.cuda.device_of(q):  # Triton launches on the current device
            return fused(q, k, v, lists, going, scale)
    implementation = merged_attention_reference if chosen == "reference" else merged_attention_chunked
    return implementation(q, k, v, lists, going, scale)


def _obstacle(q: Tensor, k: Tensor, v: Tensor, index: Tensor) -> str | None:
    if q.shape[-1] > MAX_HEAD:
        return f"head size {q.shape[-1]} is over {MAX_HEAD}"
    if index.shape[1] > MAX_LIST:
        return f"a list of {index.shape[1]} tokens is over {MAX_LIST}"
    if torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v)):
        return "it has no backward and a gradient is wanted"
    return None
