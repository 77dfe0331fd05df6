"""The squared distance of two clips' head-mean maps, and its gradient, one frame's maps at a time."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..dispatch import Backend, choose, fused_or
from .chunked import attention_map_chunked, mean_map_backward_chunked
from .obstacle import obstacle
from .reference import attention_map_reference


def map_distance(
    q_src: Tensor,
    k_src: Tensor,
    q_tgt: Tensor,
    k_tgt: Tensor,
    *,
    scale: float | None = None,
    backend: Backend = "auto",
) -> Tensor:
    """The sum over frames, queries and keys of (source's head-mean map - target's) squared.

    Args:
        q_src, k_src, q_tgt, k_tgt: [G H N D] queries and keys of G frames. The source is a constant.
        scale: of the logits. Default: D ** -0.5.
        backend: see `kernels.dispatch`.
    Returns:
        a scalar, float32 (float64 for float64 inputs). Differentiable in q_tgt and k_tgt, once.
    Raises:
        ValueError: shapes, dtypes or devices that do not go together, a backend that cannot run.
    """
    for x in (k_src, q_tgt, k_tgt):
        if x.shape != q_src.shape or x.ndim != 4 or x.dtype != q_src.dtype or x.device != q_src.device:
            raise ValueError(
                f"want q and k of source and target [G H N D], alike in shape, dtype and device; got "
                f"{[(list(y.shape), y.dtype, str(y.device)) for y in (q_src, k_src, q_tgt, k_tgt)]}"
            )
    if not q_src.is_floating_point():
        raise ValueError(f"want q and k of a floating dtype, got {q_src.dtype}")
    scale = q_src.shape[-1] ** -0.5 if scale is None else scale
    q_src, k_src = q_src.detach(), k_src.detach()
    chosen = choose(backend, q_src, obstacle(q_src, k_src))
    if chosen == "reference":
        difference = attention_map_reference(q_tgt, k_tgt, scale) - attention_map_reference(q_src, k_src, scale)
        return difference.square().sum()
    sides = (q_src, k_src, q_tgt, k_tgt)
    if torch.is_grad_enabled() and not torch.is_inference_mode_enabled():
        # autograd refuses to save what was made in inference mode, as ComfyUI makes everything
        sides = tuple(x.clone() if x.is_inference() else x for x in sides)
    if chosen == "chunked":
        return _Distance.apply(distance_chunked, distance_chunked_backward, scale, *sides)
    module = "attention_map.fused_distance"
    forward = fused_or(distance_chunked, module, "distance_fused", backend)
    backward = fused_or(distance_chunked_backward, module, "distance_fused_backward", backend)
    with torch.cuda.device_of(q_tgt):  # Triton launches on the current device; autograd sets it for the backward
        return _Distance.apply(forward, backward, scale, *sides)


class _Distance(torch.autograd.Function):
    """Saves queries and keys only: the backward makes every map again."""

    @staticmethod
    def forward(ctx, forward_maps, backward_maps, scale: float, *sides: Tensor) -> Tensor:
        ctx.backward_maps, ctx.scale = backward_maps, scale
        ctx.save_for_backward(*sides)
        return forward_maps(sides, scale)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        return *(None,) * 5, *ctx.backward_maps(ctx.saved_tensors, ctx.scale, grad)


def distance_chunked(sides: tuple, scale: float) -> Tensor:
    return sum(_difference(g, scale, *sides).square().sum() for g in range(len(sides[0])))


def distance_chunked_backward(sides: tuple, scale: float, grad: Tensor) -> tuple[Tensor, Tensor]:
    *_, q, k = sides
    dq, dk = torch.empty_like(q), torch.empty_like(k)
    for g in range(len(q)):
        ds = _difference(g, scale, *sides).mul_(2 * grad)
        dq[g], dk[g] = mean_map_backward_chunked(q[g], k[g], ds, scale)
    return dq, dk


def _difference(g: int, scale: float, q_src: Tensor, k_src: Tensor, q_tgt: Tensor, k_tgt: Tensor) -> Tensor:
    """[N N]: target's map of one frame - source's."""
    one = slice(g, g + 1)
    return (
        attention_map_chunked(q_tgt[one], k_tgt[one], scale) - attention_map_chunked(q_src[one], k_src[one], scale)
    )[0]
