"""Triton: tokens are fetched by index straight into registers, softmax is online; nothing gathered reaches memory.

Grid: one program per BM queries and row (head, or batch and head), queries fastest, so that neighbours in the frame,
whose lists nearly coincide, share the cache. README.md derives the tile and the bytes moved.
`b_` is a block in registers, `o_` an offset vector; shapes stand above each block.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..lists import Lists
from ..specs import ARCHITECTURES, POINTER, Spec


@triton.jit
def gather_attention_kernel(
    q, k, v, index, out, scale, M, T, L,
    D: tl.constexpr, BM: tl.constexpr, BL: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    blocks = tl.cdiv(M, BM)
    row = (tl.program_id(0) // blocks).to(tl.int64)
    o_m = tl.program_id(0) % blocks * BM + tl.arange(0, BM)
    o_d = tl.arange(0, BD)
    k += row * T * D
    v += row * T * D
    # [BM BD]
    here = (o_m[:, None] < M) & (o_d[None, :] < D)
    o_q = (row * M + o_m)[:, None] * D + o_d[None, :]
    b_q = tl.load(q + o_q, mask=here, other=0.0).to(tl.float32) * (scale * 1.4426950408889634)  # exp2 below

    # padding has the lowest logit and values of 0: it weighs nothing beside a token, and alone it gives 0.
    # Finite, since -inf - -inf would be NaN.
    lowest = -3.0e38
    b_max = tl.full([BM], lowest, dtype=tl.float32)
    b_sum = tl.zeros([BM], dtype=tl.float32)
    b_acc = tl.zeros([BM, BD], dtype=tl.float32)
    for start in range(0, L, BL):
        o_l = start + tl.arange(0, BL)
        # [BM BL]
        b_i = tl.load(
            index + o_m.to(tl.int64)[:, None] * L + o_l[None, :],
            mask=(o_m[:, None] < M) & (o_l[None, :] < L), other=-1,
        )  # fmt: skip
        listed = b_i >= 0
        # [BM BL BD]
        o_t = b_i.to(tl.int64)[:, :, None] * D + o_d[None, None, :]
        wanted = listed[:, :, None] & (o_d[None, None, :] < D)
        b_k = tl.load(k + o_t, mask=wanted, other=0.0).to(tl.float32)
        b_v = tl.load(v + o_t, mask=wanted, other=0.0).to(tl.float32)
        # [BM BL]
        b_s = tl.where(listed, tl.sum(b_q[:, None, :] * b_k, 2), lowest)
        b_new = tl.maximum(b_max, tl.max(b_s, 1))
        b_fix = tl.exp2(b_max - b_new)
        b_p = tl.exp2(b_s - b_new[:, None])
        b_sum = b_sum * b_fix + tl.sum(b_p, 1)
        b_acc = b_acc * b_fix[:, None] + tl.sum(b_p[:, :, None] * b_v, 1)
        b_max = b_new
    b_out = b_acc / tl.where(b_sum > 0.0, b_sum, 1.0)[:, None]  # 0 where lists have no length at all
    tl.store(out + o_q, b_out.to(out.dtype.element_ty), mask=here)


def gather_attention_fused(q: Tensor, k: Tensor, v: Tensor, lists: Lists, scale: float) -> Tensor:
    q, k, v, index = q.contiguous(), k.contiguous(), v.contiguous(), lists.index
    *rows, queries, size = q.shape
    out = torch.empty_like(q)
    meta = config(size)
    gather_attention_kernel[(math.prod(rows) * triton.cdiv(queries, meta["BM"]),)](
        q, k, v, index, out, scale, queries, k.shape[-2], index.shape[1], D=size, **meta
    )
    return out


def config(size: int) -> dict:
    """Block sizes and launch numbers: 4096 numbers of keys in flight per program; all compile without spills."""
    wide = max(16, triton.next_power_of_2(size))
    lists = min(16, 1024 // wide)
    warps = 4 if wide <= 64 else 8
    return {"BM": 4096 // (lists * wide), "BL": lists, "BD": wide, "num_warps": warps, "num_stages": 2}


def _spec(arch: str, size: int, dtype: str) -> Spec:
    types = dict.fromkeys(("q", "k", "v", "out"), POINTER[dtype]) | {"index": "*i32", "scale": "fp32"}
    types |= dict.fromkeys(("M", "T", "L"), "i32")
    return Spec(gather_attention_kernel, arch, f"D={size} {dtype}", types, {"D": size, **config(size)})


SHAPES = ((16, "float32"), (40, "float16"), (64, "bfloat16"), (80, "float16"), (160, "bfloat16"), (256, "float32"))
SPECS = [_spec(arch, *shape) for arch in ARCHITECTURES for shape in SHAPES]
