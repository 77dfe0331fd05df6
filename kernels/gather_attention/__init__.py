"""Attention where every query brings its own list of tokens to look at: COVE's correspondence-guided attention."""

from __future__ import annotations

import torch
from torch import Tensor

from ..dispatch import Backend, choose, fused_or
from ..lists import Lists, check_tokens
from .chunked import gather_attention_chunked
from .reference import gather_attention_reference

MAX_HEAD = 256


def gather_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lists: Lists | Tensor,
    *,
    scale: float | None = None,
    backend: Backend = "auto",
) -> Tensor:
    """softmax(q . k[list] * scale) v[list], with a list of its own for each query (COVE, arXiv:2406.08850).

    Args:
        q: [... M D] queries; the leading dimensions (heads, or batch and heads) share the lists.
        k, v: [... T D] tokens of all frames, with the same leading dimensions.
        lists: [M L] integers in [-1, T): the tokens each query looks at. -1 is padding and ignored; a token listed
            twice counts twice. A query whose list is all padding gets zeros. As a tensor its range is checked, which
            waits for the GPU; `Lists` were checked when they were made.
        scale: logit scale. Default: D ** -0.5.
    Returns:
        [... M D], in the dtype of q. Inside, float32 (float64 for float64).
    Raises:
        ValueError: shapes, dtypes or devices do not fit together, or an index is out of range.

    The Triton kernel has no backward.
    """
    check_tokens(q, k, v)
    if not isinstance(lists, Lists):
        lists = Lists(lists, k.shape[-2])
    lists.require(q, k)
    scale = q.shape[-1] ** -0.5 if scale is None else scale

    chosen = choose(backend, q, _obstacle(q, k, v))
    heads = q.shape[-3] if q.ndim > 2 else 1
    rows = [x.reshape(-1, heads, *x.shape[-2:]) for x in ((q, k) if v is k else (q, k, v))]
    call = rows[0], rows[1], rows[-1], lists, scale
    if chosen == "triton":
        fused = fused_or(gather_attention_chunked, "gather_attention.fused", "gather_attention_fused", backend)
        with torch.cuda.device_of(q):  # Triton launches on the current device
            return fused(*call).reshape(q.shape)
    implementation = gather_attention_reference if chosen == "reference" else gather_attention_chunked
    return implementation(*call).reshape(q.shape)


def _obstacle(q: Tensor, k: Tensor, v: Tensor) -> str | None:
    if q.shape[-1] > MAX_HEAD:
        return f"head size {q.shape[-1]} is over {MAX_HEAD}"
    if torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v)):
        return "it has no backward and a gradient is wanted"
    return None
