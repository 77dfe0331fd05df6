"""Triton: a tile of source tokens against the rectangle that holds all their windows, best K kept on chip.

Grid: one program per tile and pair of frames. README.md derives the tile and the bytes moved.
`b_` is a block in registers, `o_` an offset vector, `p_` a pointer block; shapes stand above each block.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..dispatch import architecture, interpreted
from ..specs import ARCHITECTURES, POINTER, Spec


@triton.jit
def windowed_topk_kernel(
    source, target, index, similarity, height, width, tiles, across, reach,
    D: tl.constexpr, K: tl.constexpr, KP: tl.constexpr,
    TH: tl.constexpr, TW: tl.constexpr, BC: tl.constexpr, BD: tl.constexpr,
    PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0)
    pair = (pid // tiles).to(tl.int64)
    top = (pid % tiles) // across * TH
    left = (pid % tiles) % across * TW
    tokens = height * width
    source += pair * tokens * D
    target += pair * tokens * D

    # the tile's own tokens, [TQ]
    o_q, o_d, o_k = tl.arange(0, TH * TW), tl.arange(0, BD), tl.arange(0, KP)
    row, column = top + o_q // TW, left + o_q % TW
    inside = (row < height) & (column < width)
    p_q = source + (row * width + column)[:, None] * D + o_d[None, :]

    # the rectangle of their windows; its tokens are visited in the order of their places, so of equals the first wins
    first_row, first_column = tl.maximum(top - reach, 0), tl.maximum(left - reach, 0)
    wide = tl.minimum(left + TW + reach, width) - first_column
    count = (tl.minimum(top + TH + reach, height) - first_row) * wide

    # [TQ KP], sorted, best first
    b_best = tl.full([TH * TW, KP], float("-inf"), dtype=tl.float32)
    b_at = tl.full([TH * TW, KP], -1, dtype=tl.int32)
    for start in range(0, count, BC):
        o_c = start + tl.arange(0, BC)
        their_row, their_column = first_row + o_c // wide, first_column + o_c % wide
        place = their_row * width + their_column
        p_c = target + place[None, :] * D + o_d[:, None]
        # [TQ BC]
        b_s = tl.zeros([TH * TW, BC], dtype=tl.float32)
        for d in range(0, D, BD):
            b_q = tl.load(p_q + d, mask=inside[:, None] & (d + o_d[None, :] < D), other=0.0)
            b_c = tl.load(p_c + d, mask=(o_c[None, :] < count) & (d + o_d[:, None] < D), other=0.0)
            if UPCAST:
                b_q, b_c = b_q.to(tl.float32), b_c.to(tl.float32)
            b_s = tl.dot(b_q, b_c, b_s, input_precision=PRECISION)
        rows_off = tl.abs(row[:, None] - their_row[None, :])
        columns_off = tl.abs(column[:, None] - their_column[None, :])
        near = (rows_off <= reach) & (columns_off <= reach) & (o_c[None, :] < count)
        b_s = tl.where(near, b_s, float("-inf"))

        # merge: K times take the larger of the two heads, the earlier block's on a tie
        b_old, b_old_at = b_best, b_at
        for j in range(K):
            old, old_slot = tl.max(b_old, 1, return_indices=True, return_indices_tie_break_left=True)
            new, new_slot = tl.max(b_s, 1, return_indices=True, return_indices_tie_break_left=True)
            newer = new > old
            chosen = newer[:, None] & (tl.arange(0, BC)[None, :] == new_slot[:, None])
            new_at = (first_row + (start + new_slot) // wide) * width + first_column + (start + new_slot) % wide
            kept = (newer == 0)[:, None] & (o_k[None, :] == old_slot[:, None])
            old_at = tl.max(tl.where(kept, b_old_at, -1), 1)
            b_s = tl.where(chosen, float("-inf"), b_s)
            b_old = tl.where(kept, float("-inf"), b_old)
            b_best = tl.where(o_k[None, :] == j, tl.where(newer, new, old)[:, None], b_best)
            b_at = tl.where(o_k[None, :] == j, tl.where(newer, new_at, old_at)[:, None], b_at)

    b_at = tl.where(b_best == float("-inf"), -1, b_at)
    o_out = (pair * tokens + row * width + column)[:, None] * K + o_k[None, :]
    stored = inside[:, None] & (o_k[None, :] < K)
    tl.store(index + o_out, b_at, mask=stored)
    tl.store(similarity + o_out, b_best, mask=stored)


def windowed_topk_fused(source: Tensor, target: Tensor, height: int, width: int, window: int, k: int):
    source, target = source.contiguous(), target.contiguous()
    pairs, tokens, size = source.shape
    index = torch.empty(pairs, tokens, k, dtype=torch.int32, device=source.device)
    similarity = torch.empty(pairs, tokens, k, dtype=torch.float32, device=source.device)
    meta = config(size, k, source.dtype, architecture(source))
    across = triton.cdiv(width, meta["TW"])
    tiles = across * triton.cdiv(height, meta["TH"])
    windowed_topk_kernel[(tiles * pairs,)](
        source, target, index, similarity, height, width, tiles, across, min(window // 2, max(height, width)),
        D=size, K=k, **meta, UPCAST=interpreted() and source.dtype == torch.bfloat16,
    )  # fmt: skip
    return index, similarity


def config(size: int, k: int, dtype: torch.dtype, arch: str) -> dict:
    """Block sizes and launch numbers: all compile without spills, see SPECS."""
    # NVIDIA has no float32 matrix product that is both exact and fast: three TF32 ones make up one; AMD has
    exact = "tf32x3" if dtype == torch.float32 and arch.startswith("sm_") else "ieee"
    blocks = {"TH": 8, "TW": 8, "BC": 128, "BD": 16 if dtype == torch.float32 or size <= 16 else 32}
    return {"KP": triton.next_power_of_2(k), **blocks, "PRECISION": exact, "num_warps": 8, "num_stages": 3}


def _spec(arch: str, size: int, k: int, dtype: str) -> Spec:
    types = {"source": POINTER[dtype], "target": POINTER[dtype], "index": "*i32", "similarity": "*fp32"}
    types |= dict.fromkeys(("height", "width", "tiles", "across", "reach"), "i32")
    meta = {"D": size, "K": k, "UPCAST": False, **config(size, k, getattr(torch, dtype), arch)}
    return Spec(windowed_topk_kernel, arch, f"D={size} K={k} {dtype}", types, meta)


SHAPES = ((1280, 3, "float32"), (640, 3, "float16"), (640, 3, "bfloat16"), (1280, 1, "float32"), (320, 64, "float32"))
SPECS = [_spec(arch, *shape) for arch in ARCHITECTURES for shape in SHAPES]
