"""What `benchmarks/kernels.py` runs: each operator as people write it in eager torch, chunked and fused, same inputs.

`papers` are the sizes of the papers and need a large GPU; `reduced` are the same problems at sizes for a CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..kernels import (
    Lists,
    attention_map,
    em_values,
    gather_attention,
    merged_attention,
    nearest,
    reduce_rows,
    str_loss,
    windowed_topk,
)
from ..kernels.em.reference import directions
from ..kernels.str_loss.reference import score_of_maps


@dataclass(frozen=True)
class Case:
    op: str
    shape: str
    calls: dict[str, Callable[[], object]]  # by name of the implementation
    bytes: float  # that must move: inputs read and outputs written once
    flops: float  # of the formula, nothing recomputed


def forms(call: Callable[[str], object], fused: bool) -> dict[str, Callable[[], object]]:
    """The chunked form, and the fused one where it can run; `call` takes the backend."""
    names = {"chunked": "chunked", "fused": "triton"} if fused else {"chunked": "chunked"}
    return {name: (lambda backend=backend: call(backend)) for name, backend in names.items()}


def size_of(*tensors: Tensor) -> int:
    return sum(x.nbytes for x in tensors)


def eager_maps(q: Tensor, k: Tensor) -> Tensor:
    return (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1, dtype=torch.float32).mean(1)


def eager_rows(q: Tensor, k: Tensor, t: Tensor, a: Tensor) -> Tensor:
    b = score_of_maps(eager_maps(q, k), t, 1)
    return torch.stack([(a * b).sum(-1), (a * a).sum(-1), (b * b).sum(-1)], -1)


def str_case(name: str, levels: list, device, dtype, fused: bool) -> Case:
    """Loss and gradient over all layers; levels: (layers, F, N, H, D). Layers of a level share their inputs."""
    sides, moved, flops = [], [], []
    for layers, F, N, H, D in levels:
        make = lambda: torch.randn(F, H, N, D, device=device).to(dtype)  # noqa: E731, B023
        t = torch.randn(2, N, F, F, device=device).softmax(-1)
        sides.append([make(), make(), t[0], *(x.requires_grad_() for x in (make(), make(), t[1].clone()))])
        # both sides' maps, then dP, dQ, dK of the target's: 5 products of 2 F H N N D; scores are small beside them
        flops.append(layers * 5 * 2 * F * H * N * N * D)
        moved.append(layers * (size_of(*sides[-1]) + size_of(*sides[-1][3:])))

    def run(backend, sweeps=2):
        total = 0
        for (layers, *_), side in zip(levels, sides):
            for _ in range(layers):
                if backend == "eager":
                    with torch.no_grad():
                        a = score_of_maps(eager_maps(*side[:2]), side[2], 1)
                    total = total + reduce_rows(eager_rows(*side[3:], a))
                else:
                    total = total + str_loss(*side, sweeps=sweeps, backend=backend)[0]
        total.backward()
        for side in sides:
            for x in side[3:]:
                x.grad = None

    calls = {"eager": lambda: run("eager"), **forms(run, fused)}
    if fused:
        calls["fused, one sweep"] = lambda: run("triton", 1)
    return Case("str_loss, forward + backward", name, calls, sum(moved), sum(flops))


def map_case(G, H, N, D, device, dtype, fused: bool) -> Case:
    q, k = torch.randn(2, G, H, N, D, device=device).to(dtype)
    calls = {"eager": lambda: eager_maps(q, k), **forms(lambda backend: attention_map(q, k, backend=backend), fused)}
    return Case(
        "attention_map", f"G={G} H={H} N={N} D={D}", calls, size_of(q, k) + 4 * G * N * N, 2 * G * H * N * N * D
    )


def topk_case(F, height, width, D, window, device, dtype, fused: bool) -> Case:
    features = torch.nn.functional.normalize(torch.randn(F, height * width, D, device=device), dim=-1).to(dtype)
    N, reach = height * width, window // 2
    place = torch.arange(N, device=device)
    row, column = place // width, place % width
    far = ((row[:, None] - row).abs() > reach) | ((column[:, None] - column).abs() > reach)

    def full():
        for i in range(F - 1):
            (features[i] @ features[i + 1].T).masked_fill(far, float("-inf")).topk(3)

    def unfold():
        for i in range(F - 1):
            grid = features[i + 1].T.reshape(1, D, height, width)
            windows = torch.nn.functional.unfold(grid, window, padding=reach).view(D, window * window, N)
            torch.einsum("nd,dwn->nw", features[i], windows).topk(3)

    calls = {
        "eager, n x n": full,
        **({"eager, unfold": unfold} if window * window < N else {}),
        **forms(lambda backend: windowed_topk(features, height, width, window=window, backend=backend), fused),
    }
    pairs = min(window * window, N) * N * (F - 1)
    name = f"F={F} {height}x{width} D={D} " + (
        f"window {window}" if window < 2 * max(height, width) - 1 else "whole frame"
    )
    return Case("windowed_topk", name, calls, size_of(features) + 24 * N * (F - 1), 2 * pairs * D)


def gather_case(H, M, L, D, device, dtype, fused: bool) -> Case:
    q, k, v = torch.randn(3, H, M, D, device=device).to(dtype)
    index = torch.randint(0, M, (M, L), device=device)
    lists = Lists(index, M)

    def eager():
        weights = (k[:, index] @ q[..., None])[..., 0].mul(D**-0.5).softmax(-1, dtype=torch.float32)
        return (weights.to(dtype)[:, :, None] @ v[:, index])[:, :, 0]

    calls = {"eager": eager, **forms(lambda backend: gather_attention(q, k, v, lists, backend=backend), fused)}
    moved = size_of(q, k, v, q) + 4 * M * L
    return Case("gather_attention", f"H={H} queries={M} list={L} D={D}", calls, moved, 4 * H * M * L * D)


def merged_case(H, M, L, D, device, dtype, fused: bool) -> Case:
    """Half of every list merged; one tensor is queries, keys and values, as COVE has it."""
    x = torch.randn(1, H, M, D, device=device).to(dtype)
    lists = Lists(torch.randint(0, M, (M, L), device=device), M)
    call = lambda backend: merged_attention(x, x, x, lists, backend=backend)  # noqa: E731
    calls = {"eager": lambda: call("reference"), **forms(call, fused)}
    flops = 2 * M * H * D * ((L + 1) // 2 * (L // 2) + 2 * L)
    return Case("merged_attention", f"H={H} queries={M} list={L} D={D}", calls, size_of(x, x) + 4 * M * L, flops)


def nearest_case(F, M, N, C, device, dtype, fused: bool) -> Case:
    """Every frame against its batch's keyframe and the one before, as TokenFlow has it."""
    here, there = (torch.randn(sets, N, C, device=device).to(dtype) for sets in (F, M))
    pairs = [(f, m) for f in range(F) for m in {f * M // F, max(0, f * M // F - 1)}]
    calls = {
        "eager": lambda: nearest(here, there, pairs, backend="reference"),
        **forms(lambda backend: nearest(here, there, pairs, backend=backend), fused),
    }
    moved = size_of(here, there) + 8 * len(pairs) * N
    return Case("nearest", f"frames={F} keyframes={M} N={N} C={C}", calls, moved, 2 * len(pairs) * N * N * C)


def em_case(rows, T, K, D, device, dtype, fused: bool) -> Case:
    """One E-step and the weighted mean."""
    tokens = torch.nn.functional.normalize(torch.randn(rows, T, D, device=device), dim=-1).to(dtype)
    bases = torch.randn(rows, K, D, device=device)

    def eager():
        z = (tokens.float() @ directions(bases, 0.01, 1e-4, torch.float32).mT).softmax(-1)
        return z.mT @ tokens.float() / (z.sum(1) + 1e-4)[..., None]

    call = lambda backend: em_values(tokens, tokens, bases, temperature=0.01, backend=backend)  # noqa: E731
    return Case(
        "em_step", f"rows={rows} tokens={T} bases={K} D={D}", {"eager": eager, **forms(call, fused)},
        size_of(tokens, bases, bases), 4 * rows * T * K * D,
    )  # fmt: skip


def papers(device, fused: bool) -> Iterator[Case]:
    half = torch.bfloat16
    # the layers of Stable Diffusion's UNet at latent 40 x 64 and of Zeroscope's at 40 x 72, finest level first
    sd = [(5, 16, 2560, 8, 40), (5, 16, 640, 8, 80), (5, 16, 160, 8, 160), (1, 16, 40, 8, 160)]
    zeroscope = [(5, 24, 2880, 5, 64), (5, 24, 720, 10, 64), (5, 24, 180, 20, 64), (1, 24, 45, 20, 64)]
    for name, levels in (("SD UNet 16 x 40x64", sd), ("Zeroscope 24 x 40x72", zeroscope)):
        yield str_case(f"{name}, all {sum(x[0] for x in levels)} layers", levels, device, half, fused)
        for level in levels[:3]:
            yield str_case(f"{name}, one layer of N={level[2]}", [(1, *level[1:])], device, half, fused)
    yield map_case(1, 8, 4096, 40, device, half, fused)
    for D in (640, 1280):
        for window in (3, 9, 15, 127):
            yield topk_case(20, 64, 64, D, window, device, half, fused)
    yield gather_case(8, 20 * 4096, 57, 40, device, half, fused)
    yield merged_case(8, 20 * 4096, 57, 40, device, half, fused)
    yield nearest_case(90, 12, 4096, 320, device, half, fused)
    yield em_case(8, 20 * 4096, 256, 40, device, half, fused)


def reduced(device, fused: bool) -> Iterator[Case]:
    single = torch.float32
    sd = [(5, 4, 640, 4, 40), (5, 4, 160, 4, 80), (5, 4, 40, 4, 160), (1, 4, 10, 4, 160)]
    yield str_case("F=8 N=1024 H=4 D=32", [(1, 8, 1024, 4, 32)], device, single, fused)
    yield str_case("SD UNet 4 x 20x32, all 16 layers", sd, device, single, fused)
    yield map_case(1, 4, 1024, 40, device, single, fused)
    for window in (3, 9, 95):
        yield topk_case(3, 48, 48, 160, window, device, single, fused)
    yield gather_case(4, 4096, 57, 40, device, single, fused)
    yield merged_case(4, 1024, 57, 40, device, single, fused)
    yield nearest_case(8, 2, 1024, 160, device, single, fused)
    yield em_case(4, 4 * 4096, 256, 40, device, single, fused)
