"""Triton: head-mean softmax maps in two kernels, the rows' normalisers first, then tiles of the mean.

A mean over heads of exp(z - peak) / total does not factor, so the heads are a loop inside a tile and no per-head map is
stored.
Logits are kept in base 2 (`scale` carries log2 e): exp2 is the GPU's own exponential.
`b_` is a block in registers, `o_` an offset vector; shapes stand above each block.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..dispatch import architecture, interpreted
from ..specs import ARCHITECTURES, POINTER, Spec

LOG2E = math.log2(math.e)


@triton.jit
def tile(x, o_r, R, start, D: tl.constexpr, WIDTH: tl.constexpr, UPCAST: tl.constexpr):
    """[rows WIDTH] of x [R D] from column `start`, 0 beyond either end."""
    o_d = start + tl.arange(0, WIDTH)
    b_x = tl.load(x + o_r[:, None] * D + o_d[None, :], mask=(o_r[:, None] < R) & (o_d[None, :] < D), other=0.0)
    if UPCAST:
        b_x = b_x.to(tl.float32)
    return b_x


@triton.jit
def logits(
    x, y, o_x, o_y, X, Y, scale,
    D: tl.constexpr, BX: tl.constexpr, BY: tl.constexpr, BD: tl.constexpr,
    PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """[BX BY] of scale x y', a few channels at a time: a whole head of 160 would spill."""
    b_z = tl.zeros([BX, BY], dtype=tl.float32)
    for d in range(0, D, BD):
        b_x, b_y = tile(x, o_x, X, d, D, BD, UPCAST), tile(y, o_y, Y, d, D, BD, UPCAST)
        b_z = tl.dot(b_x, tl.trans(b_y), b_z, input_precision=PRECISION)
    return b_z * scale


@triton.jit
def normaliser_kernel(
    q, k, peak, total, P, N, scale,
    D: tl.constexpr, BP: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr,
    PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """peak [GH P]: the largest logit of every row of q [GH P D] against k [GH N D]; total: the sum of exp2(z - peak).

    Two numbers, not their log-sum-exp: rounded at a logit of 1e4 it would be off by 1e-3. Grid: GH, P / BP.
    """
    gh = tl.program_id(0).to(tl.int64)
    o_p = tl.program_id(1) * BP + tl.arange(0, BP)
    q += gh * P * D
    k += gh * N * D
    # [BP]
    b_max = tl.full([BP], float("-inf"), dtype=tl.float32)
    b_sum = tl.zeros([BP], dtype=tl.float32)
    for start in range(0, N, BN):
        o_n = start + tl.arange(0, BN)
        # [BP BN]
        b_z = logits(q, k, o_p, o_n, P, N, scale, D, BP, BN, BD, PRECISION, UPCAST)
        b_z = tl.where(o_n[None, :] < N, b_z, float("-inf"))
        b_new = tl.maximum(b_max, tl.max(b_z, 1))
        b_sum = b_sum * tl.exp2(b_max - b_new) + tl.sum(tl.exp2(b_z - b_new[:, None]), 1)
        b_max = b_new
    tl.store(peak + gh * P + o_p, b_max, mask=o_p < P)
    tl.store(total + gh * P + o_p, b_sum, mask=o_p < P)


@triton.jit(do_not_specialize=["first"])
def map_kernel(
    q, k, peak, total, out, first, W, H, P, N, scale,
    D: tl.constexpr, BP: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr,
    PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Tiles of the head means of frames from `first` on, frame g into slot g % W of out [W P N], from q [G H P D] and
    k [G H N D]. Grid: P / BP, N / BN, frames."""
    g = first + tl.program_id(2)
    slot = (g % W).to(tl.int64)
    o_p = tl.program_id(0) * BP + tl.arange(0, BP)
    o_n = tl.program_id(1) * BN + tl.arange(0, BN)
    # [BP BN]
    b_out = tl.zeros([BP, BN], dtype=tl.float32)
    for h in range(H):
        gh = g.to(tl.int64) * H + h
        b_z = logits(q + gh * P * D, k + gh * N * D, o_p, o_n, P, N, scale, D, BP, BN, BD, PRECISION, UPCAST)
        b_max = tl.load(peak + gh * P + o_p, mask=o_p < P, other=0.0)
        b_sum = tl.load(total + gh * P + o_p, mask=o_p < P, other=1.0)
        b_out += tl.exp2(b_z - b_max[:, None]) * (1 / b_sum)[:, None]  # a division a row, not one an entry
    o_out = (slot * P + o_p)[:, None] * N + o_n[None, :]
    tl.store(out + o_out, b_out / H, mask=(o_p[:, None] < P) & (o_n[None, :] < N))


def dot_meta(size: int, dtype: torch.dtype, arch: str) -> dict:
    """How every kernel here multiplies heads of `size` channels."""
    return {
        "D": size,
        "BD": _channels(size, dtype, arch),
        # three tf32 products are float32 but for the last bits, on tensor cores; AMD's multiply float32 as it is
        "PRECISION": "tf32x3" if dtype == torch.float32 and arch.startswith("sm_") else "ieee",
        # the interpreter multiplies bfloat16's bit patterns (Triton 3.4 to 3.9)
        "UPCAST": interpreted() and dtype == torch.bfloat16,
    }


def _channels(size: int, dtype: torch.dtype, arch: str) -> int:
    """How many are multiplied at a time. All at once leaves a single loop, over tokens, which is then pipelined: on
    an H200 that outweighs the padding (normalisers of 40: half the time). 160 spill; 80 are too many for AMD."""
    if dtype == torch.float32:
        return 16
    if size <= 64 or (size <= 128 and arch.startswith("sm_")):
        return max(16, triton.next_power_of_2(size))
    return 32 if size % 32 == 0 else 16


def config(size: int, dtype: torch.dtype, arch: str) -> tuple[dict, dict]:
    """Meta-parameters of `normaliser_kernel` and of `map_kernel`; measured on an H200, see `benchmarks/gpu`."""
    block = {**dot_meta(size, dtype, arch), "BP": 64, "BN": 64, "num_stages": 2}
    if dtype == torch.float32:
        return {**block, "num_warps": 8}, {**block, "num_warps": 8}
    return {**block, "num_warps": 4}, {**block, "num_warps": 4, "num_stages": 3 if size <= 64 else 2}


def normalisers(q: Tensor, k: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Of the base-2 logits of contiguous q [G H P D] against k [G H N D]: each row's peak and the sum beside it."""
    (G, H, P, D), N = q.shape, k.shape[2]
    peak = torch.empty(G, H, P, dtype=torch.float32, device=q.device)
    total = torch.empty_like(peak)
    meta, _ = config(D, q.dtype, architecture(q))
    normaliser_kernel[G * H, triton.cdiv(P, meta["BP"])](q, k, peak, total, P, N, scale * LOG2E, **meta)
    return peak, total


def mean_maps(q: Tensor, k: Tensor, norms: tuple[Tensor, Tensor], scale: float, out: Tensor, frames: range) -> None:
    """Head-mean maps of some frames of contiguous q, k and their `normalisers`, frame g into out[g % W] of [W P N].

    The kernels take whole tensors and the number of a frame: where a frame starts at an odd address, a slice would be
    compiled for anew.
    """
    (_, H, P, D), N = q.shape, k.shape[2]
    _, meta = config(D, q.dtype, architecture(q))
    grid = triton.cdiv(P, meta["BP"]), triton.cdiv(N, meta["BN"]), len(frames)
    map_kernel[grid](q, k, *norms, out, frames.start, len(out), H, P, N, scale * LOG2E, **meta)


def together(frames: int, N: int) -> int:
    """How many frames a launch takes where maps are held: one fills a GPU from 1024 tokens on, smaller ones go together
    within 64 MB of maps."""
    return 1 if N > 1024 else max(1, min(frames, 2**24 // N**2))


def attention_map_fused(q: Tensor, k: Tensor, scale: float) -> Tensor:
    q, k = q.contiguous(), k.contiguous()
    (G, _, P, _), N = q.shape, k.shape[2]
    out = torch.empty(G, P, N, dtype=torch.float32, device=q.device)
    mean_maps(q, k, normalisers(q, k, scale), scale, out, range(G))
    return out


SIZES = (40, 64, 80, 160)  # head sizes of the models people run; 160 is the largest taken
DTYPES = ("bfloat16", "float32")  # float16 compiles to what bfloat16 does
_TYPES = {**dict.fromkeys(("peak", "total"), "*fp32"), "P": "i32", "N": "i32", "scale": "fp32"}
_MAP_TYPES = {"out": "*fp32", **dict.fromkeys(("first", "W", "H"), "i32")}
SPECS = [
    Spec(
        (normaliser_kernel, map_kernel)[n],
        arch,
        f"D={size} {dtype}",
        {"q": POINTER[dtype], "k": POINTER[dtype], **_TYPES, **(_MAP_TYPES if n else {})},
        config(size, getattr(torch, dtype), arch)[n],
    )
    for n in (0, 1)
    for arch in ARCHITECTURES
    for dtype in DTYPES
    for size in SIZES
]
