"""Triton: the loss of rows and its gradient in one sweep over the clip, each map made once and each tile read once.

Between rows and their gradient lies nothing but the row itself where every row has a cosine of its own. So a frame's G
is due as soon as its rows are summed, and no map has to be made again in a backward pass: 9 products, not 13.

Omega mixes S with its transpose, so the tiles (P, Q) and (Q, P) of it want the same two tiles of every map. One program
makes both, from one read: everything stands as [pixels of P, pixels of Q], and what belongs to (Q, P) is transposed
where it is stored. Scores are kept for as long as it takes to weigh them, so that they are not made again either.
`b_` is a block in registers, `o_` an offset vector; README.md derives the sums and counts the maps read.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..attention_map.fused import together
from ..specs import ARCHITECTURES, Spec
from .fused import as_is, transposed, weight
from .reduce import EPSILON
from .sweep import Gradients, Ring

BLOCK = {"B": 32, "num_warps": 8, "num_stages": 1}
WEIGH = {"BP": 16, "BQ": 128, "num_warps": 4, "num_stages": 1}


@triton.jit
def score_pair(maps, t, i, o_p, o_q, F, N, W, R: tl.constexpr):
    """Omega_i of pixels o_p x o_q and, transposed, of o_q x o_p: both [B B]."""
    b_s, b_s_t = as_is(maps, i, o_p, o_q, N, N, W), transposed(maps, i, o_p, o_q, N, N, W)
    b_out, b_back = tl.zeros_like(b_s), tl.zeros_like(b_s)
    for e in tl.static_range(-R, R + 1):
        if e != 0:
            j = i + e
            limit = tl.where((j >= 0) & (j < F), N, 0)
            # j + W: what is left of a negative number by % has a sign of its own
            b_near = as_is(maps, j + W, o_p, o_q, limit, N, W)
            b_near_t = transposed(maps, j + W, o_p, o_q, limit, N, W)
            b_p, b_p_back = weight(t, i, j, o_p, limit, F, N)[:, None], weight(t, j, i, o_p, limit, F, N)[:, None]
            b_q, b_q_back = weight(t, i, j, o_q, limit, F, N)[None, :], weight(t, j, i, o_q, limit, F, N)[None, :]
            b_out += b_p * b_near + b_p_back * b_near_t + b_q * b_s + b_q_back * b_s_t
            b_back += b_q * b_near_t + b_q_back * b_near + b_p * b_s_t + b_p_back * b_s
    return b_out, b_back


@triton.jit
def store_pair(out, b_x, b_back, o_p, o_q, N, limit):
    """A tile of a map [N N] and its partner, given transposed; `limit` is N, or 0 where the two are the same."""
    there = (o_p[:, None] < N) & (o_q[None, :] < N)
    theirs = (o_p[:, None] < limit) & (o_q[None, :] < limit)
    tl.store(out + (o_p.to(tl.int64)[:, None] * N + o_q[None, :]), b_x, mask=there)
    tl.store(out + (o_q.to(tl.int64)[None, :] * N + o_p[:, None]), b_back, mask=theirs)


@triton.jit(do_not_specialize=["first"])
def rows_pair_kernel(
    maps_a, t_a, maps_b, t_b, scores_a, scores_b, partial, first, F, N, W_a, W_b, W_g, W_s,
    R: tl.constexpr, B: tl.constexpr,
):  # fmt: skip
    """Scores into the rings scores_a [W_g N N] and scores_b [W_s N N], and each tile's share of the sums of ab, aa, bb
    into partial [S N/B 3 N]. Grid: N / B, N / B, S frames, of which the half P >= Q acts."""
    if tl.program_id(1) > tl.program_id(0):
        return
    s, i = tl.program_id(2).to(tl.int64), first + tl.program_id(2)
    back = tl.where(tl.program_id(0) != tl.program_id(1), N, 0)
    o_p = tl.program_id(0) * B + tl.arange(0, B)
    o_q = tl.program_id(1) * B + tl.arange(0, B)
    b_a, b_a_back = score_pair(maps_a, t_a, i, o_p, o_q, F, N, W_a, R)
    b_b, b_b_back = score_pair(maps_b, t_b, i, o_p, o_q, F, N, W_b, R)
    store_pair(scores_a + (i % W_g).to(tl.int64) * N * N, b_a, b_a_back, o_p, o_q, N, back)
    store_pair(scores_b + (i % W_s).to(tl.int64) * N * N, b_b, b_b_back, o_p, o_q, N, back)
    tiles = s * tl.num_programs(1)
    mine, theirs = (
        partial + (tiles + tl.program_id(1)) * 3 * N + o_p,
        partial + (tiles + tl.program_id(0)) * 3 * N + o_q,
    )
    tl.store(mine, tl.sum(b_a * b_b, 1), mask=o_p < N)
    tl.store(mine + N, tl.sum(b_a * b_a, 1), mask=o_p < N)
    tl.store(mine + 2 * N, tl.sum(b_b * b_b, 1), mask=o_p < N)
    tl.store(theirs, tl.sum(b_a_back * b_b_back, 0), mask=o_q < back)
    tl.store(theirs + N, tl.sum(b_a_back * b_a_back, 0), mask=o_q < back)
    tl.store(theirs + 2 * N, tl.sum(b_b_back * b_b_back, 0), mask=o_q < back)


@triton.jit(do_not_specialize=["first"])
def weigh_kernel(
    scores_a, scores_b, rows, first, N, W_g, W_s, EPS: tl.constexpr, BP: tl.constexpr, BQ: tl.constexpr,
):  # fmt: skip
    """G = dL/d(ab) a + 2 dL/d(bb) b over a, of L = - ab / sqrt(aa bb) and rows [F 3 N]. Grid: N / BP, N / BQ, S."""
    i = first + tl.program_id(2)
    o_p = tl.program_id(0) * BP + tl.arange(0, BP)
    o_q = tl.program_id(1) * BQ + tl.arange(0, BQ)
    rows += i.to(tl.int64) * 3 * N + o_p
    b_ab = tl.load(rows, mask=o_p < N, other=0.0)
    b_aa, b_bb = tl.load(rows + N, mask=o_p < N, other=0.0), tl.load(rows + 2 * N, mask=o_p < N, other=0.0)
    alive = (b_aa > EPS * EPS) & (b_bb > EPS * EPS)
    b_aa, b_bb = tl.where(alive, b_aa, 1.0), tl.where(alive, b_bb, 1.0)
    b_one = tl.where(alive, -1.0 / (tl.sqrt(b_aa) * tl.sqrt(b_bb)), 0.0)
    b_two = -b_one * (b_ab / b_bb)
    there = (o_p[:, None] < N) & (o_q[None, :] < N)
    o_map = o_p.to(tl.int64)[:, None] * N + o_q[None, :]
    scores_a += (i % W_g).to(tl.int64) * N * N
    b_a = tl.load(scores_a + o_map, mask=there, other=0.0)
    b_b = tl.load(scores_b + (i % W_s).to(tl.int64) * N * N + o_map, mask=there, other=0.0)
    tl.store(scores_a + o_map, b_one[:, None] * b_a + b_two[:, None] * b_b, mask=there)


@triton.jit(do_not_specialize=["first"])
def gather_pair_kernel(
    maps, gs, t, ds, peaks, partial, first, F, N, W, W_g,
    R: tl.constexpr, MAPS: tl.constexpr, WEIGHTS: tl.constexpr, B: tl.constexpr,
):  # fmt: skip
    """`fused.gather_kernel` for the tiles (P, Q) and (Q, P) at once; peaks [S N/B N/B] has both where P >= Q, and must
    hold 0 elsewhere. Grid: N / B, N / B, S frames, of which the half P >= Q acts."""
    if tl.program_id(1) > tl.program_id(0):
        return
    s, i = tl.program_id(2).to(tl.int64), first + tl.program_id(2)
    back = tl.where(tl.program_id(0) != tl.program_id(1), N, 0)
    o_p = tl.program_id(0) * B + tl.arange(0, B)
    o_q = tl.program_id(1) * B + tl.arange(0, B)
    # all [B B], pixels of P by pixels of Q
    b_g, b_g_t = as_is(gs, i, o_p, o_q, N, N, W_g), transposed(gs, i, o_p, o_q, N, N, W_g)
    if MAPS:
        b_ds, b_ds_back = tl.zeros_like(b_g), tl.zeros_like(b_g)
    if WEIGHTS:
        mine = partial + (s * tl.num_programs(1) + tl.program_id(1)) * 2 * R * N + o_p
        theirs = partial + (s * tl.num_programs(1) + tl.program_id(0)) * 2 * R * N + o_q
        b_s, b_s_t = as_is(maps, i, o_p, o_q, N, N, W), transposed(maps, i, o_p, o_q, N, N, W)
    for e in tl.static_range(-R, R + 1):
        if e != 0:
            j = i + e
            limit = tl.where((j >= 0) & (j < F), N, 0)
            b_there = b_g + transposed(gs, j + W_g, o_p, o_q, limit, N, W_g)
            b_back = b_g_t + as_is(gs, j + W_g, o_p, o_q, limit, N, W_g)
            if MAPS:
                b_ds += weight(t, i, j, o_q, limit, F, N)[None, :] * b_there
                b_ds += weight(t, j, i, o_p, limit, F, N)[:, None] * b_back
                b_ds_back += weight(t, i, j, o_p, limit, F, N)[:, None] * b_back
                b_ds_back += weight(t, j, i, o_q, limit, F, N)[None, :] * b_there
            if WEIGHTS:
                slot = (e + R - (e > 0)) * N
                b_near = as_is(maps, j + W, o_p, o_q, limit, N, W)
                b_near_t = transposed(maps, j + W, o_p, o_q, limit, N, W)
                tl.store(mine + slot, tl.sum(b_there * b_near + b_back * b_s_t, 1), mask=o_p < limit)
                b_t = tl.sum(b_back * b_near_t + b_there * b_s, 0)
                tl.store(theirs + slot, b_t, mask=o_q < tl.minimum(limit, back))
    if MAPS:
        store_pair(ds + s * N * N, b_ds, b_ds_back, o_p, o_q, N, back)
        tile = (s * tl.num_programs(0) + tl.program_id(0)) * tl.num_programs(1) + tl.program_id(1)
        b_most = tl.maximum(tl.max(tl.abs(b_ds), 1), tl.max(tl.abs(b_ds_back), 1))
        tl.store(peaks + tile, tl.max(b_most, 0))


def loss_fused(
    source: tuple, target: tuple, neighbours: int, scale: float, maps_wanted: bool, t_wanted: bool
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """Row statistics [F N 3], and of minus the sum of the rows' cosines the gradients of the target's q, k (if
    `maps_wanted`) and t (if `t_wanted`)."""
    R, (F, _, N, _) = neighbours, target[0].shape
    S, tiles = together(F, N), triton.cdiv(N, BLOCK["B"])
    # S frames are due the G and maps from R frames before them to R after; the last of those G need maps R further on
    a, b = Ring(*source, scale, S + 2 * R), Ring(*target, scale, S + 3 * R)
    like = {"dtype": torch.float32, "device": b.q.device}
    rows = torch.empty(F, 3, N, **like)
    gs, scores = torch.empty(S + 2 * R, N, N, **like), torch.empty(S + R, N, N, **like)
    sums = torch.empty(S + R, tiles, 3, N, **like)
    gradients = Gradients(b, S, (tiles, tiles), R, maps_wanted, t_wanted)
    gradients.peaks.zero_()  # one program writes both tiles' largest into the place of one
    made = 0  # frames whose rows and G there are
    for first in range(0, F, S):
        frames = range(first, min(first + S, F))
        ahead = min(frames.stop + R, F)
        a.fill(ahead + R)
        b.fill(ahead + R)
        if count := ahead - made:
            rows_pair_kernel[tiles, tiles, count](
                a.maps, a.t, b.maps, b.t, gs, scores, sums, made, F, N, a.slots, b.slots, len(gs), len(scores),
                R=R, **BLOCK,
            )  # fmt: skip
            torch.sum(sums[:count], 1, out=rows[made:ahead])
            grid = triton.cdiv(N, WEIGH["BP"]), triton.cdiv(N, WEIGH["BQ"]), count
            weigh_kernel[grid](gs, scores, rows, made, N, len(gs), len(scores), EPS=EPSILON, **WEIGH)
            made = ahead
        gather_pair_kernel[tiles, tiles, len(frames)](
            b.maps, gs, b.t, *gradients.room, first, F, N, b.slots, len(gs),
            R=R, MAPS=maps_wanted, WEIGHTS=t_wanted, **BLOCK,
        )  # fmt: skip
        gradients.take(frames)
    return rows.mT, *gradients.whole(target[2].dtype)


_COMMON = {"first": "i32", "F": "i32", "N": "i32"}
_TYPES = {
    rows_pair_kernel: {
        **dict.fromkeys(("maps_a", "t_a", "maps_b", "t_b", "scores_a", "scores_b", "partial"), "*fp32"), **_COMMON,
        **dict.fromkeys(("W_a", "W_b", "W_g", "W_s"), "i32"),
    },
    gather_pair_kernel: {
        **dict.fromkeys(("maps", "gs", "t", "ds", "peaks", "partial"), "*fp32"), **_COMMON, "W": "i32", "W_g": "i32",
    },
}  # fmt: skip
_WEIGH = {
    **dict.fromkeys(("scores_a", "scores_b", "rows"), "*fp32"), **dict.fromkeys(("first", "N", "W_g", "W_s"), "i32"),
}  # fmt: skip
SPECS = [
    Spec(
        kernel,
        arch,
        f"R={neighbours}",
        types,
        {**BLOCK, "R": neighbours, **({"MAPS": True, "WEIGHTS": True} if kernel is gather_pair_kernel else {})},
    )
    for kernel, types in _TYPES.items()
    for arch in ARCHITECTURES
    for neighbours in (1, 2)
]
SPECS += [Spec(weigh_kernel, arch, "", _WEIGH, {**WEIGH, "EPS": EPSILON}) for arch in ARCHITECTURES]
