"""Triton: tiles of cosines on tensor cores, of which each token keeps the largest and its place; no map reaches memory.

Grid: one program per BQ tokens of one pair. README.md counts what is read.
`b_` is a block in registers, `o_` an offset vector; shapes stand above each block.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..dispatch import architecture, interpreted
from ..specs import ARCHITECTURES, POINTER, Spec
from .pairs import Pairs
from .reference import shrink


@triton.jit
def nearest_kernel(
    here, there, shrink, pairs, index, N, T, C,
    BQ: tl.constexpr, BT: tl.constexpr, BC: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """here [G N C], there [M T C], shrink [M T], pairs [P 2] -> index [P N]."""
    blocks = tl.cdiv(N, BQ)
    pair = (tl.program_id(0) // blocks).to(tl.int64)
    o_q = tl.program_id(0) % blocks * BQ + tl.arange(0, BQ)
    here += tl.load(pairs + 2 * pair).to(tl.int64) * N * C
    m = tl.load(pairs + 2 * pair + 1).to(tl.int64)
    there += m * T * C
    shrink += m * T
    # [BQ]
    b_best = tl.full([BQ], float("-inf"), dtype=tl.float32)
    b_at = tl.zeros([BQ], dtype=tl.int32)
    for start in range(0, T, BT):
        o_t = start + tl.arange(0, BT)
        # [BQ BT]
        b_s = tl.zeros([BQ, BT], dtype=tl.float32)
        for c in range(0, C, BC):
            o_c = c + tl.arange(0, BC)
            b_q = tl.load(
                here + o_q[:, None] * C + o_c[None, :], mask=(o_q < N)[:, None] & (o_c < C)[None, :], other=0.0
            )
            b_t = tl.load(
                there + o_t[None, :] * C + o_c[:, None], mask=(o_t < T)[None, :] & (o_c < C)[:, None], other=0.0
            )
            if UPCAST:
                b_q, b_t = b_q.to(tl.float32), b_t.to(tl.float32)
            b_s = tl.dot(b_q, b_t, b_s, input_precision=PRECISION)
        b_s *= tl.load(shrink + o_t, mask=o_t < T, other=0.0)[None, :]
        b_s = tl.where(o_t[None, :] < T, b_s, float("-inf"))
        new, slot = tl.max(b_s, 1, return_indices=True, return_indices_tie_break_left=True)
        newer = new > b_best  # of equals the earlier stays
        b_at = tl.where(newer, start + slot, b_at)
        b_best = tl.where(newer, new, b_best)
    tl.store(index + pair * N + o_q, b_at.to(tl.int64), mask=o_q < N)


def nearest_fused(here: Tensor, there: Tensor, pairs: Pairs) -> Tensor:
    here, there = here.contiguous(), there.contiguous()
    (_, N, C), T = here.shape, there.shape[1]
    index = torch.empty(len(pairs), N, dtype=torch.int64, device=here.device)
    meta = config(here.dtype, architecture(here))
    nearest_kernel[(len(pairs) * triton.cdiv(N, meta["BQ"]),)](
        here, there, shrink(there), pairs.tensor, index, N, T, C, **meta,
        UPCAST=interpreted() and here.dtype == torch.bfloat16,  # the interpreter multiplies its bit patterns
    )  # fmt: skip
    return index


def config(dtype: torch.dtype, arch: str) -> dict:
    """Block sizes and launch numbers: all compile without spills, see SPECS."""
    single = dtype == torch.float32
    return {
        "BQ": 64 if single else 128,
        "BT": 128,
        "BC": 16 if single else 32,
        # NVIDIA has no float32 matrix product that is both exact and fast: three TF32 ones make up one; AMD has
        "PRECISION": "tf32x3" if single and arch.startswith("sm_") else "ieee",
        "num_warps": 8,
        "num_stages": 3,
    }


def _spec(arch: str, dtype: str) -> Spec:
    types = dict.fromkeys(("here", "there"), POINTER[dtype]) | {"shrink": "*fp32", "pairs": "*i32", "index": "*i64"}
    types |= dict.fromkeys(("N", "T", "C"), "i32")
    return Spec(nearest_kernel, arch, dtype, types, {"UPCAST": False, **config(getattr(torch, dtype), arch)})


SPECS = [_spec(arch, dtype) for arch in ARCHITECTURES for dtype in ("float32", "float16", "bfloat16")]
