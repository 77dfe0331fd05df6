"""Head-mean attention maps, read out for chosen query rows."""

from __future__ import annotations

import torch
from torch import Tensor

from ..dispatch import Backend, choose, fused_or
from .chunked import attention_map_chunked
from .distance import map_distance
from .obstacle import obstacle
from .reference import attention_map_reference

__all__ = ["attention_map", "map_distance", "obstacle"]


def attention_map(
    q: Tensor, k: Tensor, *, rows: Tensor | None = None, scale: float | None = None, backend: Backend = "auto"
) -> Tensor:
    """What each query attends to, averaged over the heads.

    Args:
        q, k: [G H N D] queries and keys of G frames (or any other batch); k may have its own number of tokens.
        rows: [P] int query tokens to read out, from 0 to N-1. Default: all.
        scale: of the logits. Default: D ** -0.5.
        backend: see `kernels.dispatch`.
    Returns:
        [G P N] float32 (float64 for float64 inputs); every row adds to 1. No gradient.
    Raises:
        ValueError: shapes, dtypes or devices that do not go together, rows out of range, a backend that cannot run.
    """
    if q.ndim != 4 or k.ndim != 4 or q.shape[:2] != k.shape[:2] or q.shape[3] != k.shape[3]:
        raise ValueError(f"want q [G H N D] and k [G H M D], got {list(q.shape)} and {list(k.shape)}")
    if q.dtype != k.dtype or q.device != k.device or not q.is_floating_point():
        raise ValueError(
            f"q and k must share a floating dtype and a device: {q.dtype} on {q.device}, {k.dtype} on {k.device}"
        )
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    with torch.no_grad():
        if rows is not None:
            if rows.ndim != 1 or rows.is_floating_point() or rows.dtype == torch.bool:
                raise ValueError(f"want rows [P] of int, got {list(rows.shape)} of {rows.dtype}")
            if rows.numel() and not 0 <= rows.min() <= rows.max() < q.shape[2]:
                raise ValueError(f"rows must lie in 0..{q.shape[2] - 1}, got {int(rows.min())}..{int(rows.max())}")
            q = q[:, :, rows.to(q.device).long()]
        match choose(backend, q, obstacle(q, k)):
            case "reference":
                return attention_map_reference(q, k, scale)
            case "chunked":
                return attention_map_chunked(q, k, scale)
            case "triton":
                fused = fused_or(attention_map_chunked, "attention_map.fused", "attention_map_fused", backend)
                with torch.cuda.device_of(q):  # Triton launches on the current device
                    return fused(q, k, scale)
