"""Triton: rows of the STR score, and the gradient of the maps it is made of, from rolling windows of head-mean maps.

Maps live in rings, [W N N] with frame i in slot i % W. Every program makes one tile; sums along a row leave it as one
partial sum a tile, added up by torch, so nothing is atomic and the result is the same every time. A map is read as it
is and transposed, since the score mixes S and its transpose; a tile costs bytes, not arithmetic.
`b_` is a block in registers, `o_` an offset vector, `p_` a pointer block; README.md derives the sums.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..attention_map.fused import together
from ..specs import ARCHITECTURES, Spec
from .sweep import Gradients, Ring

BLOCK = {"BP": 32, "BQ": 32, "num_warps": 4, "num_stages": 1}


@triton.jit
def as_is(maps, frame, o_p, o_q, limit, N, W):
    """A tile [BP BQ] of a ring's map of `frame`; 0 from pixel `limit` on, which is N, or 0 for no map at all."""
    base = maps + (frame % W).to(tl.int64) * N * N
    there = (o_p[:, None] < limit) & (o_q[None, :] < limit)
    return tl.load(base + (o_p.to(tl.int64)[:, None] * N + o_q[None, :]), mask=there, other=0.0)


@triton.jit
def transposed(maps, frame, o_p, o_q, limit, N, W):
    """The same tile [BP BQ] of the map's transpose."""
    base = maps + (frame % W).to(tl.int64) * N * N
    there = (o_p[:, None] < limit) & (o_q[None, :] < limit)
    return tl.load(base + (o_q.to(tl.int64)[None, :] * N + o_p[:, None]), mask=there, other=0.0)


@triton.jit
def weight(t, i, j, o, limit, F, N):
    """T[i, j] of pixels `o`, from t [F F N]; 0 from pixel `limit` on."""
    return tl.load(t + (i.to(tl.int64) * F + j) * N + o, mask=o < limit, other=0.0)


@triton.jit
def score_tile(maps, t, i, o_p, o_q, F, N, W, R: tl.constexpr):
    """Omega_i of pixels o_p x o_q, [BP BQ]."""
    b_s, b_s_t = as_is(maps, i, o_p, o_q, N, N, W), transposed(maps, i, o_p, o_q, N, N, W)
    b_out = tl.zeros_like(b_s)
    for e in tl.static_range(-R, R + 1):
        if e != 0:
            j = i + e
            limit = tl.where((j >= 0) & (j < F), N, 0)
            # j + W: what is left of a negative number by % has a sign of its own
            b_out += weight(t, i, j, o_p, limit, F, N)[:, None] * as_is(maps, j + W, o_p, o_q, limit, N, W)
            b_out += weight(t, j, i, o_p, limit, F, N)[:, None] * transposed(maps, j + W, o_p, o_q, limit, N, W)
            b_out += weight(t, i, j, o_q, limit, F, N)[None, :] * b_s
            b_out += weight(t, j, i, o_q, limit, F, N)[None, :] * b_s_t
    return b_out


@triton.jit(do_not_specialize=["first"])
def rows_kernel(
    maps_a, t_a, maps_b, t_b, partial, first, F, N, W,
    R: tl.constexpr, BP: tl.constexpr, BQ: tl.constexpr,
):  # fmt: skip
    """Sums over one tile's q of ab, aa, bb of S frames into partial [S N/BQ 3 N]. Grid: N / BP, N / BQ, S frames."""
    s, i = tl.program_id(2).to(tl.int64), first + tl.program_id(2)
    o_p = tl.program_id(0) * BP + tl.arange(0, BP)
    o_q = tl.program_id(1) * BQ + tl.arange(0, BQ)
    b_a = score_tile(maps_a, t_a, i, o_p, o_q, F, N, W, R)
    b_b = score_tile(maps_b, t_b, i, o_p, o_q, F, N, W, R)
    partial += (s * tl.num_programs(1) + tl.program_id(1)) * 3 * N + o_p
    tl.store(partial, tl.sum(b_a * b_b, 1), mask=o_p < N)
    tl.store(partial + N, tl.sum(b_a * b_a, 1), mask=o_p < N)
    tl.store(partial + 2 * N, tl.sum(b_b * b_b, 1), mask=o_p < N)


@triton.jit(do_not_specialize=["first"])
def g_kernel(
    maps_a, t_a, maps_b, t_b, grad, gs, first, F, N, W_a, W_b, W_g,
    R: tl.constexpr, BP: tl.constexpr, BQ: tl.constexpr,
):  # fmt: skip
    """Tiles of G_i = d(ab)/db + d(bb)/db, weighted by grad [F 3 N], into the ring gs. Grid: N / BP, N / BQ, frames."""
    i = first + tl.program_id(2)
    o_p = tl.program_id(0) * BP + tl.arange(0, BP)
    o_q = tl.program_id(1) * BQ + tl.arange(0, BQ)
    grad += i.to(tl.int64) * 3 * N + o_p
    b_ab = tl.load(grad, mask=o_p < N, other=0.0)
    b_bb = tl.load(grad + 2 * N, mask=o_p < N, other=0.0)
    b_g = b_ab[:, None] * score_tile(maps_a, t_a, i, o_p, o_q, F, N, W_a, R)
    b_g += 2 * b_bb[:, None] * score_tile(maps_b, t_b, i, o_p, o_q, F, N, W_b, R)
    o_out = (i % W_g).to(tl.int64) * N * N + (o_p.to(tl.int64)[:, None] * N + o_q[None, :])
    tl.store(gs + o_out, b_g, mask=(o_p[:, None] < N) & (o_q[None, :] < N))


@triton.jit(do_not_specialize=["first"])
def gather_kernel(
    maps, gs, t, ds, peaks, partial, first, F, N, W, W_g,
    R: tl.constexpr, MAPS: tl.constexpr, WEIGHTS: tl.constexpr, BP: tl.constexpr, BQ: tl.constexpr,
):  # fmt: skip
    """What the G of i and its neighbours give to S_i, into ds [S N N], and to T[i,.], into partial [S N/BQ 2R N].

    peaks [S N/BP N/BQ] is the largest |ds| of the tile. Grid: N / BP, N / BQ, S frames.
    """
    s, i = tl.program_id(2).to(tl.int64), first + tl.program_id(2)
    o_p = tl.program_id(0) * BP + tl.arange(0, BP)
    o_q = tl.program_id(1) * BQ + tl.arange(0, BQ)
    # [BP BQ]
    b_g, b_g_t = as_is(gs, i, o_p, o_q, N, N, W_g), transposed(gs, i, o_p, o_q, N, N, W_g)
    if MAPS:
        b_ds = tl.zeros_like(b_g)
    if WEIGHTS:
        partial += (s * tl.num_programs(1) + tl.program_id(1)) * 2 * R * N
        b_s_t = transposed(maps, i, o_p, o_q, N, N, W)
        b_own = tl.sum(b_g_t * b_s_t, 1)
    for e in tl.static_range(-R, R + 1):
        if e != 0:
            j = i + e
            limit = tl.where((j >= 0) & (j < F), N, 0)
            b_h = as_is(gs, j + W_g, o_p, o_q, limit, N, W_g)
            b_h_t = transposed(gs, j + W_g, o_p, o_q, limit, N, W_g)
            if MAPS:
                b_ds += weight(t, i, j, o_q, limit, F, N)[None, :] * (b_g + b_h_t)
                b_ds += weight(t, j, i, o_p, limit, F, N)[:, None] * (b_g_t + b_h)
            if WEIGHTS:
                b_near = as_is(maps, j + W, o_p, o_q, limit, N, W)
                b_t = b_own + tl.sum((b_g + b_h_t) * b_near + b_h * b_s_t, 1)
                slot = e + R - (e > 0)
                tl.store(partial + slot * N + o_p, b_t, mask=o_p < limit)
    if MAPS:
        o_out = s * N * N + (o_p.to(tl.int64)[:, None] * N + o_q[None, :])
        tl.store(ds + o_out, b_ds, mask=(o_p[:, None] < N) & (o_q[None, :] < N))
        tile = (s * tl.num_programs(0) + tl.program_id(0)) * tl.num_programs(1) + tl.program_id(1)
        tl.store(peaks + tile, tl.max(tl.max(tl.abs(b_ds), 1), 0))


def _grid(N: int, frames: int) -> tuple[int, int, int]:
    return triton.cdiv(N, BLOCK["BP"]), triton.cdiv(N, BLOCK["BQ"]), frames


def rows_fused(source: tuple, target: tuple, neighbours: int, scale: float) -> Tensor:
    """Row statistics [F N 3], as the reference defines them."""
    R, (F, _, N, _) = neighbours, target[0].shape
    S = together(F, N)
    a, b = (Ring(*side, scale, S + 2 * R) for side in (source, target))
    rows = torch.empty(F, N, 3, dtype=torch.float32, device=b.q.device)
    partial = torch.empty(S, _grid(N, S)[1], 3, N, dtype=torch.float32, device=b.q.device)
    for first in range(0, F, S):
        count = min(S, F - first)
        a.fill(first + count + R)
        b.fill(first + count + R)
        rows_kernel[_grid(N, count)](a.maps, a.t, b.maps, b.t, partial, first, F, N, a.slots, R=R, **BLOCK)
        rows[first : first + count] = partial[:count].sum(1).mT
    return rows


def rows_fused_backward(
    source: tuple, target: tuple, neighbours: int, scale: float, grad: Tensor, maps_wanted: bool, t_wanted: bool
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of the target's q, k (if `maps_wanted`) and t (if `t_wanted`) from `grad` [F N 3] of the rows."""
    R, like, (F, _, N, _) = neighbours, {"dtype": torch.float32, "device": grad.device}, target[0].shape
    S = together(F, N)
    # S frames are due the G and maps from R frames before them to R after; the last of those G need maps R further on
    a, b = Ring(*source, scale, S + 2 * R), Ring(*target, scale, S + 3 * R)
    grad = grad.float().mT.contiguous()
    gs = torch.empty(S + 2 * R, N, N, **like)
    gradients = Gradients(b, S, _grid(N, S)[:2], R, maps_wanted, t_wanted)
    made = 0  # frames whose G there is
    for first in range(0, F, S):
        frames = range(first, min(first + S, F))
        ahead = min(frames.stop + R, F)
        a.fill(ahead + R)
        b.fill(ahead + R)
        if made < ahead:
            g_kernel[_grid(N, ahead - made)](
                a.maps, a.t, b.maps, b.t, grad, gs, made, F, N, a.slots, b.slots, len(gs), R=R, **BLOCK
            )  # fmt: skip
            made = ahead
        gather_kernel[_grid(N, len(frames))](
            b.maps, gs, b.t, *gradients.room, first, F, N, b.slots, len(gs),
            R=R, MAPS=maps_wanted, WEIGHTS=t_wanted, **BLOCK,
        )  # fmt: skip
        gradients.take(frames)
    return gradients.whole(target[2].dtype)


_COMMON = {"first": "i32", "F": "i32", "N": "i32"}
_SCORE = {**dict.fromkeys(("maps_a", "t_a", "maps_b", "t_b"), "*fp32"), **_COMMON}
_TYPES = {
    rows_kernel: {**_SCORE, "partial": "*fp32", "W": "i32"},
    g_kernel: {**_SCORE, **dict.fromkeys(("grad", "gs"), "*fp32"), **dict.fromkeys(("W_a", "W_b", "W_g"), "i32")},
    gather_kernel: {
        **dict.fromkeys(("maps", "gs", "t", "ds", "peaks", "partial"), "*fp32"), **_COMMON, "W": "i32", "W_g": "i32",
    },
}  # fmt: skip
SPECS = [
    Spec(
        kernel,
        arch,
        f"R={neighbours}",
        types,
        {**BLOCK, "R": neighbours, **({"MAPS": True, "WEIGHTS": True} if kernel is gather_kernel else {})},
    )
    for kernel, types in _TYPES.items()
    for arch in ARCHITECTURES
    for neighbours in (1, 2)
]
