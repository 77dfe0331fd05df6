"""The STR score of STR-Match and its loss, without a per-head map and with a handful of head-mean ones."""

from __future__ import annotations

import torch
from torch import Tensor

from ..attention_map import obstacle
from ..dispatch import Backend, choose, fused_or
from .chunked import Side, rows_chunked, rows_chunked_backward
from .recompute import Loss, Rows, loss_chunked
from .reduce import Reduction, reduce_rows
from .reference import rows_reference

__all__ = ["Reduction", "reduce_rows", "str_loss", "str_rows", "str_score"]


def str_rows(
    q_src: Tensor,
    k_src: Tensor,
    t_src: Tensor,
    q_tgt: Tensor,
    k_tgt: Tensor,
    t_tgt: Tensor,
    *,
    neighbours: int = 1,
    scale: float | None = None,
    per_head: bool = False,
    backend: Backend = "auto",
) -> Tensor:
    """Row statistics of the source's STR score a and the target's b, enough for every reduction of the loss.

    Args:
        q_src, k_src, q_tgt, k_tgt: [F H N D] queries and keys of the spatial self-attention, F frames of N tokens.
        t_src, t_tgt: [N F F] temporal attention maps, mean over heads, rows (query frames) adding to 1.
        neighbours: N(i) is the frames at distance 1..neighbours of frame i, cut at both ends of the clip.
        scale: of the logits. Default: D ** -0.5.
        per_head: score head by head instead of on head-mean maps; t is then [H N F F].
        backend: see `kernels.dispatch`.
    Returns:
        [F N 3] float32 (float64 for float64 inputs): sums over q of ab, aa, bb for frame i and token p; [H F N 3] with
        `per_head`. Differentiable in q_tgt, k_tgt and t_tgt, once; the source is a constant.
    Raises:
        ValueError: shapes, dtypes or devices that do not go together, fewer than 2 frames, a backend that cannot run.
    STR-Match (Lee et al. 2025), equations 2 to 4. The paper fixes neither the heads nor the neighbourhood: mean over
    heads before the product, distance 1 and no wrap are our reading.
    """
    sides, scale = _checked((q_src, k_src, t_src, q_tgt, k_tgt, t_tgt), neighbours, scale, per_head)
    chosen = choose(backend, q_tgt, obstacle(q_tgt, k_tgt) or _obstacle(neighbours))
    if not per_head:
        return _rows(chosen, backend, neighbours, scale, *sides)
    heads = zip(*(x.unbind(0) if n % 3 == 2 else x.split(1, dim=1) for n, x in enumerate(sides)))
    return torch.stack([_rows(chosen, backend, neighbours, scale, *head) for head in heads])


def str_loss(
    q_src: Tensor,
    k_src: Tensor,
    t_src: Tensor,
    q_tgt: Tensor,
    k_tgt: Tensor,
    t_tgt: Tensor,
    *,
    neighbours: int = 1,
    reduction: Reduction = "row_sum",
    scale: float | None = None,
    per_head: bool = False,
    sweeps: int = 2,
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor]:
    """Minus the cosine similarity of the source's and the target's STR scores, and the rows it was made from.

    Takes what `str_rows` takes; `reduction` is that of `reduce_rows`. With `sweeps` 1 Triton makes the gradient of
    "row_sum" along with the loss, in one sweep over the clip, and the rows have none; no GPU has run it yet, so 2, the
    loss and then its gradient, is what is asked for elsewhere. For one cosine over several layers keep each
    layer's rows and give them to `reduce_rows` together.

    The cosine of a whole layer has a tiny gradient: in float16 multiply the loss by 2**12 or more and divide later.
    """
    if sweeps == 1 and reduction == "row_sum" and not per_head:
        sides, scale = _checked((q_src, k_src, t_src, q_tgt, k_tgt, t_tgt), neighbours, scale, per_head)
        wanted = torch.is_grad_enabled() and any(x.requires_grad for x in sides[3:])
        if wanted and choose(backend, q_tgt, obstacle(q_tgt, k_tgt) or _obstacle(neighbours)) == "triton":
            forward = fused_or(loss_chunked, "str_loss.fused_loss", "loss_fused", backend)
            with torch.cuda.device_of(q_tgt):  # Triton launches on the current device
                return Loss.apply(forward, neighbours, scale, *sides)
    rows = str_rows(
        q_src, k_src, t_src, q_tgt, k_tgt, t_tgt,
        neighbours=neighbours, scale=scale, per_head=per_head, backend=backend,
    )  # fmt: skip
    return reduce_rows(rows, reduction), rows


@torch.no_grad()
def str_score(
    q: Tensor,
    k: Tensor,
    t: Tensor,
    frame: int,
    *,
    neighbours: int = 1,
    scale: float | None = None,
    rows: Tensor | None = None,
) -> Tensor:
    """The STR score itself, for viewers: how strongly token p of one frame belongs to every token q of it.

    Args:
        q, k, t, neighbours, scale: one side of what `str_rows` takes.
        frame: which frame, 0 to F-1.
        rows: [P] int tokens p to read out. Default: all N.
    Returns:
        [P N] float32 (float64 for float64 inputs). No gradient.
    Raises:
        ValueError: shapes that do not go together, a frame or rows out of range.
    """
    _check(q, k, t, "of the score", neighbours, per_head=False)
    F, _, N, D = q.shape
    if not 0 <= frame < F:
        raise ValueError(f"frame must lie in 0..{F - 1}, got {frame}")
    if rows is not None and rows.numel() and not 0 <= rows.min() <= rows.max() < N:
        raise ValueError(f"rows must lie in 0..{N - 1}, got {int(rows.min())}..{int(rows.max())}")
    side = Side(q, k, t, neighbours, D**-0.5 if scale is None else scale)
    side.advance(frame)
    return side.score(frame, slice(None) if rows is None else rows.to(q.device).long())


def _rows(chosen: str, backend: Backend, neighbours: int, scale: float, *sides: Tensor) -> Tensor:
    if chosen == "reference":
        return rows_reference(sides[:3], sides[3:], neighbours, scale)
    if chosen == "chunked":
        return Rows.apply(rows_chunked, rows_chunked_backward, neighbours, scale, *sides)
    forward = fused_or(rows_chunked, "str_loss.fused", "rows_fused", backend)
    backward = fused_or(rows_chunked_backward, "str_loss.fused", "rows_fused_backward", backend)
    with torch.cuda.device_of(sides[3]):  # Triton launches on the current device; autograd sets it for the backward
        return Rows.apply(forward, backward, neighbours, scale, *sides)


def _checked(
    sides: tuple[Tensor, ...], neighbours: int, scale: float | None, per_head: bool
) -> tuple[tuple[Tensor, ...], float]:
    """What `str_rows` was given, as autograd can save it, and the scale."""
    _check(*sides[:3], "src", neighbours, per_head)
    _check(*sides[3:], "tgt", neighbours, per_head)
    q_src, q_tgt = sides[0], sides[3]
    if q_src.shape != q_tgt.shape or q_src.dtype != q_tgt.dtype or q_src.device != q_tgt.device:
        raise ValueError(
            f"source and target must match: q is {list(q_src.shape)} {q_src.dtype} on {q_src.device} "
            f"and {list(q_tgt.shape)} {q_tgt.dtype} on {q_tgt.device}"
        )
    if torch.is_grad_enabled() and not torch.is_inference_mode_enabled():
        # autograd refuses to save what was made in inference mode, as ComfyUI makes everything
        sides = tuple(x.clone() if x.is_inference() else x for x in sides)
    return sides, q_src.shape[-1] ** -0.5 if scale is None else scale


def _obstacle(neighbours: int) -> str | None:
    return None if neighbours <= 2 else f"{neighbours} neighbours on each side are over 2"


def _check(q: Tensor, k: Tensor, t: Tensor, side: str, neighbours: int, per_head: bool) -> None:
    if q.ndim != 4 or k.shape != q.shape:
        raise ValueError(f"want q and k {side} [F H N D], got {list(q.shape)} and {list(k.shape)}")
    F, H, N, _ = q.shape
    want = [H, N, F, F] if per_head else [N, F, F]
    if list(t.shape) != want:
        raise ValueError(f"want t {side} {'[H N F F]' if per_head else '[N F F]'} = {want}, got {list(t.shape)}")
    if F < 2:
        raise ValueError(f"the STR score compares neighbouring frames: want 2 or more, got {F}")
    if not all(x.is_floating_point() for x in (q, k, t)) or k.dtype != q.dtype:
        raise ValueError(f"want q and k {side} of one floating dtype, got {q.dtype} and {k.dtype} (t: {t.dtype})")
    if len({x.device for x in (q, k, t)}) > 1:
        raise ValueError(f"q, k, t {side} are on different devices: {q.device}, {k.device}, {t.device}")
    if neighbours < 1:
        raise ValueError(f"neighbours must be 1 or more, got {neighbours}")
