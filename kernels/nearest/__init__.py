"""The most similar token of another set for every token: TokenFlow's nearest neighbours, many pairs of sets a call."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..dispatch import Backend, choose, fused_or
from .chunked import nearest_chunked
from .pairs import Pairs
from .reference import nearest_reference

__all__ = ["Pairs", "nearest"]


@torch.no_grad()
def nearest(here: Tensor, there: Tensor, pairs: Sequence[tuple[int, int]], *, backend: Backend = "auto") -> Tensor:
    """Which token of a set of `there` has the largest cosine with each token of a set of `here`.

    Args:
        here: [G N C] tokens as they are; their lengths do not matter.
        there: [M T C] tokens of the same dtype; T >= 1. Of equal cosines the lower place wins.
        pairs: P times (a set of here, a set of there); as `Pairs`, if they are asked for more than once.
    Returns:
        [P N] int64 places in 0..T-1. No gradient.
    Raises:
        ValueError: shapes, dtypes or devices do not fit together, or a pair names a set that is not there.

    Cosines are float32 (float64 for float64): products of half tokens are summed in float32 and never rounded to half,
    so half tokens give the places that the same numbers in float32 give.
    """
    shapes = f"{[*here.shape]} and {[*there.shape]}"
    if here.ndim != 3 or there.ndim != 3 or here.shape[2] != there.shape[2] or there.shape[1] == 0:
        raise ValueError(f"want tokens here [G N C] and there [M T C] with one C and T >= 1, got {shapes}")
    if not here.is_floating_point() or here.dtype != there.dtype or here.device != there.device:
        raise ValueError(
            f"want here and there of one floating dtype on one device, got {here.dtype} on {here.device} and "
            f"{there.dtype} on {there.device}"
        )
    for g, m in pairs:
        if not (0 <= g < len(here) and 0 <= m < len(there)):
            raise ValueError(f"there is no pair ({g}, {m}) in {len(here)} sets here and {len(there)} there")
    chosen = choose(backend, here)
    if not pairs:
        return torch.empty(0, here.shape[1], dtype=torch.int64, device=here.device)
    if chosen == "triton":
        fused = fused_or(nearest_chunked, "nearest.fused", "nearest_fused", backend)
        with torch.cuda.device_of(here):  # Triton launches on the current device
            return fused(here, there, pairs if isinstance(pairs, Pairs) else Pairs(pairs, here.device))
    return (nearest_reference if chosen == "reference" else nearest_chunked)(here, there, pairs)
