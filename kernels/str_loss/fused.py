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

from ..attention_map.fused import lse, mean_map
from ..attention_map.fused_backward import mean_map_backward
from ..specs import ARCHITECTURES, Spec

BLOCK = {"BP": 32, "BQ": 32, "num_warps": 4, "num_stages": 1}


@triton.jit
def as_is(maps, frame, o_p, o_q, there, N, W):
    """A tile [BP BQ] of a ring's map of `frame`; 0 where it is not `there`."""
    base = maps + (frame % W).to(tl.int64) * N * N
    return tl.load(base + (o_p.to(tl.int64)[:, None] * N + o_q[None, :]), mask=there, other=0.0)


@triton.jit
def transposed(maps, frame, o_p, o_q, there, N, W):
    """The same tile [BP BQ] of the map's transpose."""
    base = maps + (frame % W).to(tl.int64) * N * N
    return tl.load(base + (o_q.to(tl.int64)[None, :] * N + o_p[:, None]), mask=there, other=0.0)


@triton.jit
def weight(t, i, j, o, ok, F, N):
    """T[i, j] of pixels `o`, from t [F F N]; 0 where it is not `ok`."""
    return tl.load(t + (i * F + j) * N + o, mask=(o < N) & ok, other=0.0)


@triton.jit
def score_tile(maps, t, i, o_p, o_q, F, N, W, R: tl.constexpr):
    """Omega_i of pixels o_p x o_q, [BP BQ]."""
    inside = (o_p[:, None] < N) & (o_q[None, :] < N)
    b_s, b_s_t = as_is(maps, i, o_p, o_q, inside, N, W), transposed(maps, i, o_p, o_q, inside, N, W)
    b_out = tl.zeros_like(b_s)
    for e in tl.static_range(-R, R + 1):
        if e != 0:
            j = i + e
            ok = (j >= 0) & (j < F)
            # j + W: what is left of a negative number by % has a sign of its own
            b_out += weight(t, i, j, o_p, ok, F, N)[:, None] * as_is(maps, j + W, o_p, o_q, inside & ok, N, W)
            b_out += weight(t, j, i, o_p, ok, F, N)[:, None] * transposed(maps, j + W, o_p, o_q, inside & ok, N, W)
            b_out += weight(t, i, j, o_q, ok, F, N)[None, :] * b_s
            b_out += weight(t, j, i, o_q, ok, F, N)[None, :] * b_s_t
    return b_out


@triton.jit(do_not_specialize=["i"])
def rows_kernel(
    maps_a, t_a, maps_b, t_b, partial, i, F, N, W,
    R: tl.constexpr, BP: tl.constexpr, BQ: tl.constexpr,
):  # fmt: skip
    """Sums over one tile's q of ab, aa, bb into partial [N/BQ 3 N]. Grid: N / BP, N / BQ."""
    o_p = tl.program_id(0) * BP + tl.arange(0, BP)
    o_q = tl.program_id(1) * BQ + tl.arange(0, BQ)
    b_a = score_tile(maps_a, t_a, i, o_p, o_q, F, N, W, R)
    b_b = score_tile(maps_b, t_b, i, o_p, o_q, F, N, W, R)
    partial += tl.program_id(1) * 3 * N + o_p
    tl.store(partial, tl.sum(b_a * b_b, 1), mask=o_p < N)
    tl.store(partial + N, tl.sum(b_a * b_a, 1), mask=o_p < N)
    tl.store(partial + 2 * N, tl.sum(b_b * b_b, 1), mask=o_p < N)


@triton.jit(do_not_specialize=["i"])
def g_kernel(
    maps_a, t_a, maps_b, t_b, grad, out, i, F, N, W_a, W_b,
    R: tl.constexpr, BP: tl.constexpr, BQ: tl.constexpr,
):  # fmt: skip
    """A tile of G_i = d(ab)/db + d(bb)/db, weighted by grad [3 N], into out [N N]. Grid: N / BP, N / BQ."""
    o_p = tl.program_id(0) * BP + tl.arange(0, BP)
    o_q = tl.program_id(1) * BQ + tl.arange(0, BQ)
    b_ab = tl.load(grad + o_p, mask=o_p < N, other=0.0)
    b_bb = tl.load(grad + 2 * N + o_p, mask=o_p < N, other=0.0)
    b_g = b_ab[:, None] * score_tile(maps_a, t_a, i, o_p, o_q, F, N, W_a, R)
    b_g += 2 * b_bb[:, None] * score_tile(maps_b, t_b, i, o_p, o_q, F, N, W_b, R)
    tl.store(out + (o_p.to(tl.int64)[:, None] * N + o_q[None, :]), b_g, mask=(o_p[:, None] < N) & (o_q[None, :] < N))


@triton.jit(do_not_specialize=["i"])
def gather_kernel(
    maps, gs, t, ds, peaks, partial, i, F, N, W, W_g,
    R: tl.constexpr, MAPS: tl.constexpr, WEIGHTS: tl.constexpr, BP: tl.constexpr, BQ: tl.constexpr,
):  # fmt: skip
    """What the G of i and its neighbours give to S_i, into ds [N N], and to T[i,.], into partial [N/BQ 2R N].

    peaks [N/BP N/BQ] is the largest |ds| of the tile. Grid: N / BP, N / BQ.
    """
    o_p = tl.program_id(0) * BP + tl.arange(0, BP)
    o_q = tl.program_id(1) * BQ + tl.arange(0, BQ)
    inside = (o_p[:, None] < N) & (o_q[None, :] < N)
    # [BP BQ]
    b_g, b_g_t = as_is(gs, i, o_p, o_q, inside, N, W_g), transposed(gs, i, o_p, o_q, inside, N, W_g)
    if MAPS:
        b_ds = tl.zeros_like(b_g)
    if WEIGHTS:
        b_s_t = transposed(maps, i, o_p, o_q, inside, N, W)
        b_own = tl.sum(b_g_t * b_s_t, 1)
    for e in tl.static_range(-R, R + 1):
        if e != 0:
            j = i + e
            ok = (j >= 0) & (j < F)
            b_h = as_is(gs, j + W_g, o_p, o_q, inside & ok, N, W_g)
            b_h_t = transposed(gs, j + W_g, o_p, o_q, inside & ok, N, W_g)
            if MAPS:
                b_ds += weight(t, i, j, o_q, ok, F, N)[None, :] * (b_g + b_h_t)
                b_ds += weight(t, j, i, o_p, ok, F, N)[:, None] * (b_g_t + b_h)
            if WEIGHTS:
                b_near = as_is(maps, j + W, o_p, o_q, inside & ok, N, W)
                b_t = b_own + tl.sum((b_g + b_h_t) * b_near + b_h * b_s_t, 1)
                slot = e + R - (e > 0)
                tl.store(partial + (tl.program_id(1) * 2 * R + slot) * N + o_p, b_t, mask=(o_p < N) & ok)
    if MAPS:
        tl.store(ds + (o_p.to(tl.int64)[:, None] * N + o_q[None, :]), b_ds, mask=inside)
        tl.store(peaks + tl.program_id(0) * tl.num_programs(1) + tl.program_id(1), tl.max(tl.max(tl.abs(b_ds), 1), 0))


class Ring:
    """One side's t, laid out for the kernels, and its rolling window of head-mean maps."""

    def __init__(self, q: Tensor, k: Tensor, t: Tensor, scale: float, slots: int):
        self.q, self.k, self.scale, self.slots = q.contiguous(), k.contiguous(), scale, slots
        self.t = t.permute(1, 2, 0).float().contiguous()  # [F F N]: pixels lie side by side
        self.lse = lse(self.q, self.k, scale)
        F, _, N, _ = q.shape
        self.maps = torch.empty(slots, N, N, dtype=torch.float32, device=q.device)
        self.frames, self.filled = F, 0

    def fill(self, last: int) -> None:
        """Make the maps up to frame `last`, over those that are `slots` frames older."""
        while self.filled <= min(last, self.frames - 1):
            i, slot = self.filled, self.filled % self.slots
            one = slice(i, i + 1)
            mean_map(self.q[one], self.k[one], self.lse[one], self.scale, self.maps[slot : slot + 1])
            self.filled += 1


def _grid(N: int) -> tuple[int, int]:
    return triton.cdiv(N, BLOCK["BP"]), triton.cdiv(N, BLOCK["BQ"])


def rows_fused(source: tuple, target: tuple, neighbours: int, scale: float) -> Tensor:
    """Row statistics [F N 3], as the reference defines them."""
    slots = 2 * neighbours + 1
    a, b = (Ring(*side, scale, slots) for side in (source, target))
    F, _, N, _ = b.q.shape
    rows = torch.empty(F, N, 3, dtype=torch.float32, device=b.q.device)
    partial = torch.empty(_grid(N)[1], 3, N, dtype=torch.float32, device=b.q.device)
    for i in range(F):
        a.fill(i + neighbours)
        b.fill(i + neighbours)
        rows_kernel[_grid(N)](a.maps, a.t, b.maps, b.t, partial, i, F, N, slots, R=neighbours, **BLOCK)
        rows[i] = partial.sum(0).T
    return rows


def rows_fused_backward(
    source: tuple, target: tuple, neighbours: int, scale: float, grad: Tensor, maps_wanted: bool, t_wanted: bool
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of the target's q, k (if `maps_wanted`) and t (if `t_wanted`) from `grad` [F N 3] of the rows."""
    R, like = neighbours, {"dtype": torch.float32, "device": grad.device}
    # G of frame m needs the maps of m - R .. m + R; what frame i = m - R is due, the G and maps of i - R .. i + R
    a, b = Ring(*source, scale, 2 * R + 1), Ring(*target, scale, 3 * R + 1)
    F, _, N, _ = b.q.shape
    grid = _grid(N)
    grad = grad.float().mT.contiguous()
    gs = torch.empty(2 * R + 1, N, N, **like)
    dq, dk = (torch.empty_like(b.q), torch.empty_like(b.k)) if maps_wanted else (None, None)
    dt = torch.zeros(F, F, N, **like) if t_wanted else None
    ds = torch.empty((N, N) if maps_wanted else 1, **like)
    peaks = torch.empty(grid if maps_wanted else 1, **like)
    partial = torch.empty((grid[1], 2 * R, N) if t_wanted else 1, **like)
    for m in range(F + R):
        if m < F:
            a.fill(m + R)
            b.fill(m + R)
            g_kernel[grid](
                a.maps, a.t, b.maps, b.t, grad[m], gs[m % (2 * R + 1)], m, F, N, a.slots, b.slots, R=R, **BLOCK
            )  # fmt: skip
        i = m - R
        if i < 0:
            continue
        gather_kernel[grid](
            b.maps, gs, b.t, ds, peaks, partial, i, F, N, b.slots, 2 * R + 1,
            R=R, MAPS=maps_wanted, WEIGHTS=t_wanted, **BLOCK,
        )  # fmt: skip
        if maps_wanted:
            mean_map_backward(b.q[i], b.k[i], b.lse[i], ds, peaks.max().view(1), scale, dq[i], dk[i])
        if t_wanted:
            for slot, j in enumerate([*range(i - R, i), *range(i + 1, i + R + 1)]):
                if 0 <= j < F:
                    dt[i, j] = partial[:, slot].sum(0)
    return dq, dk, dt.permute(2, 0, 1).to(target[2].dtype) if t_wanted else None


_COMMON = {"i": "i32", "F": "i32", "N": "i32"}
_SCORE = {**dict.fromkeys(("maps_a", "t_a", "maps_b", "t_b"), "*fp32"), **_COMMON}
_TYPES = {
    rows_kernel: {**_SCORE, "partial": "*fp32", "W": "i32"},
    g_kernel: {**_SCORE, "grad": "*fp32", "out": "*fp32", "W_a": "i32", "W_b": "i32"},
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
