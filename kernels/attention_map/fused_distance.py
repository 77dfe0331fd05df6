"""The distance of two clips' head-mean maps by the kernels of `fused.py` and `fused_backward.py`: none of its own."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from .fused import mean_maps, normalisers, together
from .fused_backward import mean_maps_backward

SPECS = []


def distance_fused(sides: tuple, scale: float) -> Tensor:
    q_src, k_src, q_tgt, k_tgt = (x.contiguous() for x in sides)
    source, target = ((q, k, normalisers(q, k, scale)) for q, k in ((q_src, k_src), (q_tgt, k_tgt)))
    return sum(difference.square().sum() for _, difference in _differences(source, target, scale))


def distance_fused_backward(sides: tuple, scale: float, grad: Tensor) -> tuple[Tensor, Tensor]:
    q_src, k_src, q, k = (x.contiguous() for x in sides)
    source, target = (q_src, k_src, normalisers(q_src, k_src, scale)), (q, k, normalisers(q, k, scale))
    dq, dk = torch.empty_like(q), torch.empty_like(k)
    for frames, ds in _differences(source, target, scale):
        ds.mul_(2 * grad)
        mean_maps_backward(*target, ds, ds.abs().amax((1, 2)), scale, dq, dk, frames)
    return dq, dk


def _differences(source: tuple, target: tuple, scale: float) -> Iterator[tuple[range, Tensor]]:
    """Some frames at a time, and target's maps - source's, [S N N]; a side is q, k [G H N D] and their normalisers."""
    G, _, N, _ = target[0].shape
    S = together(G, N)
    maps = torch.empty(2, S, N, N, dtype=torch.float32, device=target[0].device)
    for first in range(0, G, S):  # a multiple of S: the frames lie in slots from 0 on
        frames = range(first, min(first + S, G))
        for side, out in zip((source, target), maps):
            mean_maps(*side, scale, out, frames)
        yield frames, maps[1, : len(frames)] - maps[0, : len(frames)]
