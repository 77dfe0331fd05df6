"""Triton, two sweeps: each token's softmax normaliser, then every block of bases gathers its responsibilities' sums.

Z lives tile by tile in registers. The second sweep is cut into stretches of tokens so that it fills the GPU;
their sums are added up by torch, in a fixed order: no atomics. README.md derives the tiles and the bytes moved.
`b_` is a block in registers, `o_` an offset vector; shapes stand above each block.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..dispatch import architecture
from ..specs import ARCHITECTURES, POINTER, Spec
from .reference import directions

PROGRAMS = 1024  # enough for every SM of a large GPU to hold several
SHORTEST = 512  # tokens of a stretch: shorter ones would spend more on writing sums than on reading tokens


@triton.jit
def em_logits(tokens, toward, o_t, o_k, T, K, D: tl.constexpr, BT: tl.constexpr, BK: tl.constexpr, BD: tl.constexpr,
              PRECISION: tl.constexpr):  # fmt: skip
    """[BT BK] logits; bases that do not exist get -inf."""
    o_d = tl.arange(0, BD)
    b_s = tl.zeros([BT, BK], dtype=tl.float32)
    for d in range(0, D, BD):
        # [BT BD]
        b_x = tl.load(
            tokens + o_t.to(tl.int64)[:, None] * D + (d + o_d)[None, :],
            mask=(o_t[:, None] < T) & (d + o_d[None, :] < D), other=0.0,
        )  # fmt: skip
        # [BD BK]
        b_m = tl.load(
            toward + o_k[None, :] * D + (d + o_d)[:, None],
            mask=(o_k[None, :] < K) & (d + o_d[:, None] < D), other=0.0,
        )  # fmt: skip
        b_s = tl.dot(b_x.to(tl.float32), b_m, b_s, input_precision=PRECISION)
    return tl.where(o_k[None, :] < K, b_s, float("-inf"))


@triton.jit
def em_normaliser_kernel(
    tokens, toward, peak, total, T, K,
    D: tl.constexpr, BT: tl.constexpr, BK: tl.constexpr, BD: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """peak[t] = the largest logit, total[t] = the sum over bases of exp(logit - peak).

    Two numbers, not their log-sum-exp: at temperature 0.01 a logit is in the hundreds, and rounding there would cost
    what float32 was to keep.
    """
    blocks = tl.cdiv(T, BT)
    row = (tl.program_id(0) // blocks).to(tl.int64)
    o_t = tl.program_id(0) % blocks * BT + tl.arange(0, BT)
    tokens += row * T * D
    toward += row * K * D
    b_max = tl.full([BT], float("-inf"), dtype=tl.float32)
    b_sum = tl.zeros([BT], dtype=tl.float32)
    for start in range(0, K, BK):
        o_k = start + tl.arange(0, BK)
        b_s = em_logits(tokens, toward, o_t, o_k, T, K, D, BT, BK, BD, PRECISION)
        b_new = tl.maximum(b_max, tl.max(b_s, 1))
        b_sum = b_sum * tl.exp(b_max - b_new) + tl.sum(tl.exp(b_s - b_new[:, None]), 1)
        b_max = b_new
    tl.store(peak + row * T + o_t, b_max, mask=o_t < T)
    tl.store(total + row * T + o_t, b_sum, mask=o_t < T)


@triton.jit
def em_sums_kernel(
    tokens, values, toward, peak, total, sums, mass, T, K, stretch,
    D: tl.constexpr, W: tl.constexpr, BT: tl.constexpr, BK: tl.constexpr, BD: tl.constexpr, BW: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """One block of bases over one stretch of tokens: sums[split, row] = Z^T values, mass[split, row] = sum of Z."""
    row, split = tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    o_k = tl.program_id(0) * BK + tl.arange(0, BK)
    o_w = tl.arange(0, BW)
    tokens += row * T * D
    values += row * T * W
    peak += row * T
    total += row * T
    toward += row * K * D
    first = tl.program_id(2) * stretch
    last = tl.minimum(first + stretch, T)
    b_mass = tl.zeros([BK], dtype=tl.float32)
    b_acc = tl.zeros([BK, BW], dtype=tl.float32)
    for start in range(first, last, BT):
        o_t = start + tl.arange(0, BT)
        b_s = em_logits(tokens, toward, o_t, o_k, last, K, D, BT, BK, BD, PRECISION)
        b_max = tl.load(peak + o_t, mask=o_t < last, other=0.0)
        b_sum = tl.load(total + o_t, mask=o_t < last, other=float("inf"))  # tokens that do not exist: Z = 0
        # [BT BK]
        b_z = tl.exp(b_s - b_max[:, None]) / b_sum[:, None]
        # [BT BW]
        b_v = tl.load(
            values + o_t.to(tl.int64)[:, None] * W + o_w[None, :],
            mask=(o_t[:, None] < last) & (o_w[None, :] < W), other=0.0,
        )  # fmt: skip
        b_mass += tl.sum(b_z, 0)
        b_acc = tl.dot(tl.trans(b_z), b_v.to(tl.float32), b_acc, input_precision=PRECISION)
    o_out = (split * tl.num_programs(1) + row) * K + o_k
    tl.store(mass + o_out, b_mass, mask=o_k < K)
    tl.store(sums + o_out[:, None] * W + o_w[None, :], b_acc, mask=(o_k[:, None] < K) & (o_w[None, :] < W))


def em_sums_fused(
    tokens: Tensor, values: Tensor, bases: Tensor, temperature: float, eps: float
) -> tuple[Tensor, Tensor]:
    rows, T, D = tokens.shape
    K, W = bases.shape[1], values.shape[-1]
    tokens, values = tokens.contiguous(), values.contiguous()
    toward = directions(bases, temperature, eps, torch.float32).contiguous()
    first, second = config(D, W, architecture(tokens))
    peak = torch.empty(rows, T, dtype=torch.float32, device=tokens.device)
    total = torch.empty_like(peak)
    em_normaliser_kernel[(rows * triton.cdiv(T, first["BT"]),)](tokens, toward, peak, total, T, K, D=D, **first)

    blocks = triton.cdiv(K, second["BK"])
    splits = max(1, min(triton.cdiv(T, SHORTEST), triton.cdiv(PROGRAMS, blocks * rows)))
    stretch = triton.cdiv(triton.cdiv(T, splits), second["BT"]) * second["BT"]
    splits = triton.cdiv(T, stretch)
    sums = torch.empty(splits, rows, K, W, dtype=torch.float32, device=tokens.device)
    mass = torch.empty(splits, rows, K, dtype=torch.float32, device=tokens.device)
    em_sums_kernel[(blocks, rows, splits)](
        tokens, values, toward, peak, total, sums, mass, T, K, stretch, D=D, W=W, **second
    )  # fmt: skip
    return sums.sum(0), mass.sum(0)


def config(size: int, width: int, arch: str) -> tuple[dict, dict]:
    """Block sizes and launch numbers of the two kernels: all compile without spills, see SPECS.

    Products are float32 also for half tokens: at temperature 0.01 a rounded logit is another assignment. For the same
    reason both kernels take their logits in the same tiles: rounded alike, they make Z whose rows add up to 1.
    """
    exact = "tf32x3" if arch.startswith("sm_") else "ieee"
    logits = {"BT": 32, "BK": 64, "BD": 16 if size <= 48 else 32, "PRECISION": exact, "num_warps": 8, "num_stages": 2}
    if size <= 64 and width <= 64 and arch == "sm_90":  # the fastest of six on a busy H200; elsewhere they spill
        logits |= {"BT": 64, "num_warps": 4}
    return logits, {"BW": max(16, triton.next_power_of_2(width)), **logits}


def _specs(arch: str, size: int, dtype: str) -> list[Spec]:
    first, second = config(size, size, arch)
    types = {"tokens": POINTER[dtype], "T": "i32", "K": "i32"} | dict.fromkeys(("toward", "peak", "total"), "*fp32")
    more = {"values": POINTER[dtype], "sums": "*fp32", "mass": "*fp32", "stretch": "i32"}
    shape = f"D={size} {dtype}"
    return [
        Spec(em_normaliser_kernel, arch, shape, types, {"D": size, **first}),
        Spec(em_sums_kernel, arch, shape, types | more, {"D": size, "W": size, **second}),
    ]


SHAPES = ((16, "float32"), (40, "float16"), (64, "bfloat16"), (80, "float16"), (160, "bfloat16"), (256, "float32"))
SPECS = [spec for arch in ARCHITECTURES for shape in SHAPES for spec in _specs(arch, *shape)]
