"""Triton: one program a query, for all heads: its list is fetched, matched, merged and attended to on the chip.

The tokens of a list stand in two vectors, those at even places and those at odd ones, and a matrix [P P] says which of
the former joined which of the latter. A group's logit is the mean of its tokens' logits and its weight goes to them in
equal shares, so no merged token is ever made and nothing but the output reaches memory. README.md counts the bytes.
`b_` is a block in registers, `o_` an offset vector; shapes stand above each block.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..dispatch import architecture, interpreted
from ..lists import Lists
from ..specs import ARCHITECTURES, POINTER, Spec
from .reference import SMALLEST_NORM


@triton.jit
def tokens(x, b_i, o_c, C, WIDTH):
    """[P, channels o_c] of the listed tokens of x, C apart; 0 for padding and from WIDTH on."""
    o_x = b_i.to(tl.int64)[:, None] * C + o_c[None, :]
    return tl.load(x + o_x, mask=(b_i >= 0)[:, None] & (o_c < WIDTH)[None, :], other=0.0)


@triton.jit
def merged_attention_kernel(
    q, k, v, index, shrink, out, scale, M, T, L, going,
    H: tl.constexpr, D: tl.constexpr, P: tl.constexpr, BC: tl.constexpr, BD: tl.constexpr,
    MATCH: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """q, out [R M H D], k, v [R T H D], shrink [R T] the keys' inverse lengths. Grid: R * M, queries fastest."""
    row = (tl.program_id(0) // M).to(tl.int64)
    m = (tl.program_id(0) % M).to(tl.int64)
    C: tl.constexpr = H * D
    q += (row * M + m) * C
    out += (row * M + m) * C
    k += row * T * C
    v += row * T * C
    # [P]: place 2 i and place 2 i + 1
    o_p = tl.arange(0, P)
    b_ie = tl.load(index + m * L + 2 * o_p, mask=2 * o_p < L, other=-1)
    b_io = tl.load(index + m * L + 2 * o_p + 1, mask=2 * o_p + 1 < L, other=-1)
    even_there, odd_there = b_ie >= 0, b_io >= 0

    # [P P], even places by odd ones: who joins whom
    if MATCH:
        b_s = tl.zeros([P, P], dtype=tl.float32)
        for start in range(0, C, BC):
            o_c = start + tl.arange(0, BC)
            b_e, b_o = tokens(k, b_ie, o_c, C, C), tokens(k, b_io, o_c, C, C)
            if UPCAST:
                b_e, b_o = b_e.to(tl.float32), b_o.to(tl.float32)
            b_s = tl.dot(b_e, tl.trans(b_o), b_s, input_precision=PRECISION)
        shrink += row * T
        b_s *= tl.load(shrink + b_ie, mask=even_there, other=0.0)[:, None]
        b_s *= tl.load(shrink + b_io, mask=odd_there, other=0.0)[None, :]
        b_s = tl.where(even_there[:, None] & odd_there[None, :], b_s, float("-inf"))
        b_best, b_to = tl.max(b_s, 1, return_indices=True, return_indices_tie_break_left=True)
        ahead = (b_best[None, :] > b_best[:, None]) | (
            (b_best[None, :] == b_best[:, None]) & (o_p[None, :] < o_p[:, None])
        )
        gone = (tl.sum(ahead.to(tl.int32), 1) < going) & (b_best > float("-inf"))
    else:
        b_to = o_p
        gone = even_there & odd_there
    b_join = tl.where((b_to[:, None] == o_p[None, :]) & gone[:, None], 1.0, 0.0)
    b_share = 1.0 / (1.0 + tl.sum(b_join, 0))  # of each token in its group, [P] at odd places
    stays = even_there & (gone == 0)

    # padding has the lowest logit; finite, since -inf - -inf would be NaN
    lowest = -3.0e38
    for h in range(H):
        # [P]: logits
        b_ze, b_zo = tl.zeros([P], dtype=tl.float32), tl.zeros([P], dtype=tl.float32)
        for d in range(0, D, BD):
            o_d = d + tl.arange(0, BD)
            b_q = tl.load(q + h * D + o_d, mask=o_d < D, other=0.0).to(tl.float32) * (scale * 1.4426950408889634)
            b_ze += tl.sum(tokens(k + h * D, b_ie, o_d, C, D).to(tl.float32) * b_q[None, :], 1)
            b_zo += tl.sum(tokens(k + h * D, b_io, o_d, C, D).to(tl.float32) * b_q[None, :], 1)
        b_zo = (b_zo + tl.sum(b_join * b_ze[:, None], 0)) * b_share
        b_ze = tl.where(stays, b_ze, lowest)
        b_zo = tl.where(odd_there, b_zo, lowest)
        # [P]: weights
        peak = tl.maximum(tl.max(b_ze, 0), tl.max(b_zo, 0))
        b_we = tl.where(stays, tl.exp2(b_ze - peak), 0.0)
        b_wo = tl.where(odd_there, tl.exp2(b_zo - peak), 0.0)
        total = tl.sum(b_we, 0) + tl.sum(b_wo, 0)
        total = tl.where(total > 0.0, total, 1.0)  # 0 where a list is all padding
        b_wo *= b_share
        b_we += tl.sum(b_join * b_wo[None, :], 1)
        for d in range(0, D, BD):
            o_d = d + tl.arange(0, BD)
            b_out = tl.sum(tokens(v + h * D, b_ie, o_d, C, D).to(tl.float32) * b_we[:, None], 0)
            b_out += tl.sum(tokens(v + h * D, b_io, o_d, C, D).to(tl.float32) * b_wo[:, None], 0)
            tl.store(out + h * D + o_d, (b_out / total).to(out.dtype.element_ty), mask=o_d < D)


def merged_attention_fused(q: Tensor, k: Tensor, v: Tensor, lists: Lists, going: int | None, scale: float) -> Tensor:
    rows, heads, queries, size = q.shape
    index = lists.index
    same = v is k
    q, k = _by_token(q), _by_token(k)
    v = k if same else _by_token(v)
    shrink = 1 / torch.linalg.vector_norm(k.flatten(2), dim=-1, dtype=torch.float32).clamp(min=SMALLEST_NORM)
    out = torch.empty_like(q)
    meta = config(heads, size, index.shape[1], q.dtype, architecture(q))
    merged_attention_kernel[(rows * queries,)](
        q, k, v, index, shrink, out, scale, queries, k.shape[1], index.shape[1], going or 0,
        H=heads, D=size, MATCH=going is not None, **meta,
        UPCAST=interpreted() and q.dtype == torch.bfloat16,  # the interpreter multiplies its bit patterns
    )  # fmt: skip
    return out.transpose(1, 2)


def _by_token(x: Tensor) -> Tensor:
    """[R H T D] -> [R T H D] in memory: all channels of a token lie together, as matching reads them."""
    x = x.transpose(1, 2)
    return torch.empty(x.shape, dtype=x.dtype, device=x.device).copy_(x)


def config(heads: int, size: int, length: int, dtype: torch.dtype, arch: str) -> dict:
    """Block sizes and launch numbers: all compile without spills, see SPECS."""
    places = max(16, triton.next_power_of_2(triton.cdiv(length, 2)))
    long = places == 128  # whose matrices leave registers for little else
    return {
        "P": places,
        "BC": 32 if dtype != torch.float32 and heads * size % 32 == 0 else 16,
        "BD": 16 if long else 64 if size % 64 == 0 or 32 < size < 64 else 32,  # 160 is 5 x 32, not 256
        # NVIDIA has no float32 matrix product that is both exact and fast: three TF32 ones make up one; AMD has
        "PRECISION": "tf32x3" if dtype == torch.float32 and arch.startswith("sm_") else "ieee",
        "num_warps": 4 if places <= 32 else 8,
        "num_stages": 1 if long else 2,
    }


def _spec(arch: str, heads: int, size: int, length: int, dtype: str, match: bool) -> Spec:
    types = dict.fromkeys(("q", "k", "v", "out"), POINTER[dtype]) | {"index": "*i32", "shrink": "*fp32"}
    types |= {"scale": "fp32"} | dict.fromkeys(("M", "T", "L", "going"), "i32")
    meta = {"H": heads, "D": size, "MATCH": match, "UPCAST": False}
    meta |= config(heads, size, length, getattr(torch, dtype), arch)
    shape = f"H={heads} D={size} L={length} {dtype}{'' if match else ' neighbours'}"
    return Spec(merged_attention_kernel, arch, shape, types, meta)


SHAPES = (  # heads, their size, length of the lists: 57 is 20 frames' and 3 matches'
    (8, 40, 57, "float16", True),
    (8, 40, 57, "float32", True),
    (5, 64, 57, "bfloat16", True),
    (10, 64, 128, "float16", True),
    (8, 80, 57, "bfloat16", True),
    (8, 160, 57, "float16", True),
    (8, 40, 256, "float32", True),
    (8, 160, 256, "bfloat16", True),
    (2, 256, 256, "float32", True),
    (8, 40, 57, "float16", False),
    (8, 160, 256, "float32", False),
)
SPECS = [_spec(arch, *shape) for arch in ARCHITECTURES for shape in SHAPES]
