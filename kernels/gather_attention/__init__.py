"""Attention where every query brings its own list of tokens to look at: COVE's correspondence-guided attention."""

from __future__ import annotations

import torch
from torch import Tensor

from ..dispatch import Backend, choose
from .chunked import gather_attention_chunked
from .merging import translate
from .reference import gather_attention_reference

MAX_HEAD = 256


def gather_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    index: Tensor,
    *,
    merge: Tensor | None = None,
    scale: float | None = None,
    backend: Backend = "auto",
) -> Tensor:
    """softmax(q . k[list] * scale) v[list], with a list of its own for each query (COVE, arXiv:2406.08850).

    Args:
        q: [... M D] queries; the leading dimensions (heads, or batch and heads) share the lists.
        k, v: [... T D] tokens of all frames, with the same leading dimensions.
        index: [M L] integers in [-1, T): the tokens each query looks at. -1 is padding and ignored; a token listed
            twice counts twice. A query whose list is all padding gets zeros.
        merge: [T0] integers in [0, T): k and v are merged tokens, `index` speaks of the T0 tokens before merging, and
            `merge` says where each went. Tokens of a list that were merged into one count once: the paper's merging
            has no term for the size of a group.
        scale: logit scale. Default: D ** -0.5.
    Returns:
        [... M D], in the dtype of q. Inside, float32 (float64 for float64).
    Raises:
        ValueError: shapes, dtypes or devices do not fit together, or an index is out of range.

    The range of `index` is checked, which waits for the GPU once. The Triton kernel has no backward.
    """
    _check(q, k, v)
    tokens = k.shape[-2]
    if index.ndim != 2 or index.shape[0] != q.shape[-2] or not _is_integer(index):
        raise ValueError(
            f"want one list of token indices per query, integers [{q.shape[-2]} L]; got {index.dtype} {[*index.shape]}"
        )
    if merge is not None:
        if merge.ndim != 1 or not _is_integer(merge):
            raise ValueError(f"want a merge map of integers [T0], got {merge.dtype} {[*merge.shape]}")
        _check_range(merge, 0, tokens, "the merge map")
        _check_range(index, -1, len(merge), "index")
        index = translate(index, merge)
    else:
        _check_range(index, -1, tokens, "index")
    if any(x.device != q.device for x in (k, v, index)):
        raise ValueError(f"q is on {q.device}, but k, v and index are on {k.device}, {v.device} and {index.device}")
    scale = q.shape[-1] ** -0.5 if scale is None else scale

    flat = (x.reshape(-1, *x.shape[-2:]) for x in (q, k, v))
    chosen = choose(backend, q, _obstacle(q, k, v))
    if chosen == "triton":
        from .fused import gather_attention_fused

        with torch.cuda.device_of(q):  # Triton launches on the current device
            return gather_attention_fused(*flat, index.int(), scale).view(q.shape)
    implementation = gather_attention_reference if chosen == "reference" else gather_attention_chunked
    return implementation(*flat, index, scale).view(q.shape)


def _check(q: Tensor, k: Tensor, v: Tensor) -> None:
    shapes = f"q {[*q.shape]}, k {[*k.shape]}, v {[*v.shape]}"
    if q.ndim < 2 or k.ndim < 2 or k.shape != v.shape or q.shape[:-2] != k.shape[:-2] or q.shape[-1] != k.shape[-1]:
        raise ValueError(f"want q [... M D] and k, v [... T D] with equal leading dimensions and D; got {shapes}")
    if not q.is_floating_point() or q.dtype != k.dtype or q.dtype != v.dtype:
        raise ValueError(f"want q, k and v in one floating-point dtype, got {q.dtype}, {k.dtype}, {v.dtype}")


def _is_integer(x: Tensor) -> bool:
    return x.dtype in (torch.int32, torch.int64)


def _check_range(index: Tensor, low: int, high: int, name: str) -> None:
    if index.numel() == 0:
        return
    least, most = torch.stack(index.aminmax()).tolist()
    if least < low or most >= high:
        raise ValueError(f"{name} must lie in [{low}, {high}), but holds {least if least < low else most}")


def _obstacle(q: Tensor, k: Tensor, v: Tensor) -> str | None:
    if q.shape[-1] > MAX_HEAD:
        return f"head size {q.shape[-1]} is over {MAX_HEAD}"
    if torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v)):
        return "it has no backward and a gradient is wanted"
    return None
