"""Triton: from the gradient of one frame's head-mean map to that of its queries and keys.

With P = softmax(z) of a head, dS the gradient of the mean over H heads and D(p) = sum over n of P dS / H,

    dz = P (dS / H - D),    dq = scale dz k,    dk = scale dz' q.

D needs a sweep of its own over the row (there is no shortcut through an attention output: a map has no values), and is
divided by that sweep's own sum of P: where a row attends to one token dS / H - D must vanish, and at logits of 1e4 a
normaliser summed in other tiles is off by what rounding them costs. dq owns rows and dk columns, so nothing is added
atomically and the result is the same every time.

dz is tiny, a product of two probabilities' worth of numbers, and float16 has no small numbers: it is multiplied by
2 ** 14 over the frame's largest |dS| before it is rounded for the tensor cores, and the sum divided again.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..dispatch import architecture
from ..specs import ARCHITECTURES, POINTER, Spec
from .fused import DTYPES, LOG2E, SIZES, dot_meta, logits, tile


@triton.jit(do_not_specialize=["first"])
def dq_kernel(
    q, k, peak, total, ds, largest, dq, rowsum, first, H, N, scale, scale2,
    D: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr, BP: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr,
    PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """dq [G H N D] of frames from `first` on, and rowsum [S H N] (the D above), from q, k [G H N D], peak, total
    [G H N], ds [S N N], largest [S]. Grid: N / BP, H, S frames."""
    s = tl.program_id(2).to(tl.int64)
    h = (first + s) * H + tl.program_id(1)
    o_p = tl.program_id(0) * BP + tl.arange(0, BP)
    q += h * N * D
    k += h * N * D
    ds += s * N * N
    rowsum += (s * H + tl.program_id(1)) * N
    b_max = tl.load(peak + h * N + o_p, mask=o_p < N, other=0.0)
    b_sum = tl.load(total + h * N + o_p, mask=o_p < N, other=1.0)
    # [BP BN], offsets in 64 bits: a map can have more entries than 32 hold
    p_ds = ds + o_p.to(tl.int64)[:, None] * N
    b_d = tl.zeros([BP], dtype=tl.float32)
    b_own = tl.zeros([BP], dtype=tl.float32)
    for start in range(0, N, BN):
        o_n = start + tl.arange(0, BN)
        inside = (o_p[:, None] < N) & (o_n[None, :] < N)
        b_z = logits(q, k, o_p, o_n, N, N, scale2, D, BP, BN, BD, PRECISION, UPCAST)
        b_ds = tl.load(p_ds + o_n[None, :], mask=inside, other=0.0)
        b_p = tl.where(inside, tl.exp2(b_z - b_max[:, None]), 0.0)
        b_d += tl.sum(b_p * b_ds, 1)
        b_own += tl.sum(b_p, 1)
    mean = 1.0 / H  # the same factor on both sides of dS / H - D
    b_d = b_d / tl.where(o_p < N, b_own, 1.0) * mean
    tl.store(rowsum + o_p, b_d, mask=o_p < N)

    most = tl.load(largest + s)
    stretch = 16384.0 / tl.where(most > 0, most, 16384.0)
    b_share = stretch / b_sum  # divided once, not for every entry
    # [BP D1], [BP D2]
    b_dq1 = tl.zeros([BP, D1], dtype=tl.float32)
    if D2 > 0:
        b_dq2 = tl.zeros([BP, D2], dtype=tl.float32)
    for start in range(0, N, BN):
        o_n = start + tl.arange(0, BN)
        inside = (o_p[:, None] < N) & (o_n[None, :] < N)
        b_z = logits(q, k, o_p, o_n, N, N, scale2, D, BP, BN, BD, PRECISION, UPCAST)
        b_ds = tl.load(p_ds + o_n[None, :], mask=inside, other=0.0)
        b_dz = tl.where(inside, tl.exp2(b_z - b_max[:, None]) * b_share[:, None] * (b_ds * mean - b_d[:, None]), 0.0)
        b_k = tile(k, o_n, N, 0, D, D1, UPCAST)
        b_dq1 = tl.dot(b_dz.to(b_k.dtype), b_k, b_dq1, input_precision=PRECISION)
        if D2 > 0:
            b_k = tile(k, o_n, N, D1, D, D2, UPCAST)
            b_dq2 = tl.dot(b_dz.to(b_k.dtype), b_k, b_dq2, input_precision=PRECISION)
    dq += h * N * D
    o_d = tl.arange(0, D1)
    stored = (o_p[:, None] < N) & (o_d[None, :] < D)
    tl.store(dq + o_p[:, None] * D + o_d[None, :], b_dq1 * (scale / stretch), mask=stored)
    if D2 > 0:
        o_d = D1 + tl.arange(0, D2)
        stored = (o_p[:, None] < N) & (o_d[None, :] < D)
        tl.store(dq + o_p[:, None] * D + o_d[None, :], b_dq2 * (scale / stretch), mask=stored)


@triton.jit(do_not_specialize=["first"])
def dk_kernel(
    q, k, peak, total, ds, largest, dk, rowsum, first, H, N, scale, scale2,
    D: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr, BP: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr,
    PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """dk [G H N D], with rowsum [S H N] from `dq_kernel`. Tiles are transposed, [BN BP]. Grid: N / BN, H, S frames."""
    s = tl.program_id(2).to(tl.int64)
    h = (first + s) * H + tl.program_id(1)
    o_n = tl.program_id(0) * BN + tl.arange(0, BN)
    q += h * N * D
    k += h * N * D
    ds += s * N * N
    rowsum += (s * H + tl.program_id(1)) * N
    most = tl.load(largest + s)
    stretch, mean = 16384.0 / tl.where(most > 0, most, 16384.0), 1.0 / H
    # [BN D1], [BN D2]
    b_dk1 = tl.zeros([BN, D1], dtype=tl.float32)
    if D2 > 0:
        b_dk2 = tl.zeros([BN, D2], dtype=tl.float32)
    for start in range(0, N, BP):
        o_p = start + tl.arange(0, BP)
        inside = (o_n[:, None] < N) & (o_p[None, :] < N)
        # [BP]
        b_max = tl.load(peak + h * N + o_p, mask=o_p < N, other=0.0)
        b_share = stretch / tl.load(total + h * N + o_p, mask=o_p < N, other=1.0)
        b_d = tl.load(rowsum + o_p, mask=o_p < N, other=0.0)
        # [BN BP]
        b_z = logits(k, q, o_n, o_p, N, N, scale2, D, BN, BP, BD, PRECISION, UPCAST)
        b_ds = tl.load(ds + o_p.to(tl.int64)[None, :] * N + o_n[:, None], mask=inside, other=0.0)
        b_dz = tl.where(inside, tl.exp2(b_z - b_max[None, :]) * b_share[None, :] * (b_ds * mean - b_d[None, :]), 0.0)
        b_q = tile(q, o_p, N, 0, D, D1, UPCAST)
        b_dk1 = tl.dot(b_dz.to(b_q.dtype), b_q, b_dk1, input_precision=PRECISION)
        if D2 > 0:
            b_q = tile(q, o_p, N, D1, D, D2, UPCAST)
            b_dk2 = tl.dot(b_dz.to(b_q.dtype), b_q, b_dk2, input_precision=PRECISION)
    dk += h * N * D
    o_d = tl.arange(0, D1)
    stored = (o_n[:, None] < N) & (o_d[None, :] < D)
    tl.store(dk + o_n[:, None] * D + o_d[None, :], b_dk1 * (scale / stretch), mask=stored)
    if D2 > 0:
        o_d = D1 + tl.arange(0, D2)
        stored = (o_n[:, None] < N) & (o_d[None, :] < D)
        tl.store(dk + o_n[:, None] * D + o_d[None, :], b_dk2 * (scale / stretch), mask=stored)


def backward_config(size: int, dtype: torch.dtype, arch: str) -> tuple[dict, dict]:
    """Meta-parameters of `dq_kernel` and of `dk_kernel`."""
    first = max(16, 2 ** (size.bit_length() - 1))
    rest = max(0, size - first)
    # what is kept across the sweep is as wide as the head: 80 is 64 + 16, not 128
    meta = {**dot_meta(size, dtype, arch), "D1": first, "D2": max(16, triton.next_power_of_2(rest)) if rest else 0}
    # a program keeps `own` rows of its gradient and sweeps the other side in steps; wider ones spill
    if dtype == torch.float32:  # with 64 rows of 160 channels an H200's results moved from run to run (Triton 3.6)
        own, step, warps = 32, 16, {"num_warps": 4, "num_stages": 2}
    elif size > 128:
        own, step, warps = 64, 32, {"num_warps": 8, "num_stages": 2}
    else:
        own, step, warps = 64, 32, {"num_warps": 4, "num_stages": 3}
    meta |= warps
    return {**meta, "BP": own, "BN": step}, {**meta, "BP": step, "BN": own}


def mean_maps_backward(
    q: Tensor, k: Tensor, norms: tuple[Tensor, Tensor], ds: Tensor, largest: Tensor, scale: float,
    dq: Tensor, dk: Tensor, frames: range,
) -> None:  # fmt: skip
    """Into some frames of contiguous dq and dk [G H N D]: the gradient through their head-mean maps.

    Args:
        q, k: [G H N D] contiguous.  norms: of `fused.normalisers`.
        ds: [S N N] float32, gradient of the maps of S `frames`.  largest: [S] float32, the largest |ds| of each.
    """
    _, H, N, D = q.shape
    meta_q, meta_k = backward_config(D, q.dtype, architecture(q))
    rowsum = torch.empty(len(frames), H, N, dtype=torch.float32, device=q.device)
    numbers = frames.start, H, N, scale, scale * LOG2E
    grid_q, grid_k = triton.cdiv(N, meta_q["BP"]), triton.cdiv(N, meta_k["BN"])
    dq_kernel[grid_q, H, len(frames)](q, k, *norms, ds, largest, dq, rowsum, *numbers, **meta_q)
    dk_kernel[grid_k, H, len(frames)](q, k, *norms, ds, largest, dk, rowsum, *numbers, **meta_k)


_TYPES = {
    **dict.fromkeys(("peak", "total", "ds", "largest", "rowsum"), "*fp32"), **dict.fromkeys(("first", "H", "N"), "i32"),
}  # fmt: skip
SPECS = [
    Spec(
        (dq_kernel, dk_kernel)[n],
        arch,
        f"D={size} {dtype}",
        {**_TYPES, **dict.fromkeys(("q", "k", ("dq", "dk")[n]), POINTER[dtype]), "scale": "fp32", "scale2": "fp32"},
        backward_config(size, getattr(torch, dtype), arch)[n],
    )
    for n in (0, 1)
    for arch in ARCHITECTURES
    for dtype in DTYPES
    for size in SIZES
]
