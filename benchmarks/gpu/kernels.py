"""Are the Triton kernels right, and how fast: the papers' sizes against float64, their own tests, and a table.

At the papers' sizes a kernel runs twice on the same inputs. It may err at most twice what chunked torch errs in the
same precision, measured against chunked torch in float64, and half a unit of what it returns; and both times it gives
the same bits, or it races.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ...kernels import (
    Lists,
    attention_map,
    em_values,
    gather_attention,
    merged_attention,
    nearest,
    str_loss,
    windowed_topk,
)
from ...kernels.dispatch import interpreted
from ..kernel_cases import papers, reduced
from ..kernels import device_peaks, rows_of
from .report import Report

ROOT = Path(__file__).resolve().parents[2]
TIMES = 2.0  # of chunked torch's own error
FLOOR = 1e-6  # relative to the largest entry
HALVES = (torch.float16, torch.bfloat16)
TABLE = "op | shape | implementation | ms | speed-up | peak MB | memory ratio | GB/s | TFLOP/s | x floor"


def run_tests(report: Report) -> None:
    """`tests/kernels/fused`, each file in a process: on the GPU, or in Triton's interpreter where that is asked for."""
    files = sorted((ROOT / "tests" / "kernels" / "fused").glob("test_*.py"))

    def run(file: Path) -> tuple[str, str]:
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=short", str(file)]
        limit = max(1.0, report.left - 5)
        try:
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=limit)
        except subprocess.TimeoutExpired:
            return "stopped at the deadline", ""
        return done.stdout.strip().rpartition("\n")[2].strip("= "), done.stdout + done.stderr

    with ThreadPoolExecutor(max(1, min(len(files), (os.cpu_count() or 2) // 2))) as pool:
        for file, (summary, output) in zip(files, pool.map(run, files)):
            right = "passed" in summary and "failed" not in summary and "error" not in summary
            report.judge(right, f"tests of {file.stem.removeprefix('test_')}", summary)
            if not right:
                (report.out / "errors.txt").open("a").write(f"{file.name}\n{output[-20_000:]}\n")


@dataclass(frozen=True)
class Question:
    """One operator at one size; `ask` gives its outputs and gradients for inputs of any dtype."""

    name: str
    inputs: tuple[Tensor, ...]
    ask: Callable[[tuple[Tensor, ...], str], tuple[Tensor, ...]]
    frees: tuple[int, ...] = ()  # inputs that keep float32 when the others are halves


def questions(device: torch.device, tiny: bool) -> Iterator[Question]:
    """At the papers' sizes, or at sizes for Triton's interpreter."""

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, device=device)

    def unit(*shape: int) -> Tensor:
        return torch.nn.functional.normalize(randn(*shape), dim=-1)

    layers = [(16, 8, 2560, 40), (16, 8, 640, 80), (16, 8, 160, 160), (24, 5, 2880, 64), (24, 20, 45, 64)]
    for F, H, N, D in [(2, 1, 9, 16)] if tiny else layers:
        sides = (2, F, H, N, D)
        q, k = randn(*sides), randn(*sides)
        t = randn(2, N, F, F).softmax(-1)
        inputs = (q[0], k[0], t[0], q[1], k[1], t[1])
        yield Question(f"str_loss and gradient F={F} H={H} N={N} D={D}", inputs, _str_loss, frees=(2, 5))
        name = f"str_loss and gradient in one sweep F={F} H={H} N={N} D={D}"
        yield Question(name, inputs, partial(_str_loss, sweeps=1), frees=(2, 5))
    G, H, N, D = (1, 2, 9, 16) if tiny else (4, 8, 4096, 40)
    yield Question(
        f"attention_map G={G} H={H} N={N} D={D}",
        (randn(G, H, N, D), randn(G, H, N, D)),
        lambda x, backend: (attention_map(*x, backend=backend),),
    )
    rows, T, K, D = (1, 20, 4, 8) if tiny else (8, 20 * 4096, 256, 40)
    yield Question(
        f"em_values rows={rows} tokens={T} bases={K} D={D}",
        (unit(rows, T, D), unit(rows, T, D), randn(rows, K, D)),
        lambda x, backend: (em_values(*x, temperature=0.01, backend=backend),),
        frees=(2,),
    )
    H, M, L, D = (1, 20, 6, 8) if tiny else (8, 20 * 4096, 57, 40)
    lists = Lists(torch.randint(0, M, (M, L), device=device), M)
    yield Question(
        f"gather_attention H={H} queries={M} list={L} D={D}",
        (randn(H, M, D), randn(H, M, D), randn(H, M, D)),
        lambda x, backend: (gather_attention(*x, lists, backend=backend),),
    )
    side, size = (4, 8) if tiny else (64, 640)
    yield Question(
        f"windowed_topk 4 x {side}x{side} D={size} window 9",
        (unit(4, side * side, size),),
        lambda x, backend: (windowed_topk(x[0], side, side, window=9, backend=backend)[1],),
    )
    F, N, C = (3, 9, 8) if tiny else (16, 4096, 320)
    pairs = [(f, f % 2) for f in range(F)]
    yield Question(
        f"nearest frames={F} N={N} C={C}",
        (randn(F, N, C), randn(2, N, C)),
        lambda x, backend: (_cosines(x, nearest(*x, pairs, backend=backend), pairs),),
    )
    H, M, L, D = (1, 20, 6, 8) if tiny else (8, 4096, 57, 40)
    some = Lists(torch.randint(0, M, (M, L), device=device), M)
    tokens = randn(1, H, M, D)
    yield Question(
        f"merged_attention H={H} queries={M} list={L} D={D}",
        (tokens,),
        lambda x, backend: (merged_attention(x[0], x[0], x[0], some, backend=backend),),
    )


def _str_loss(inputs: tuple[Tensor, ...], backend: str, sweeps: int = 2) -> tuple[Tensor, ...]:
    leaves = [x.detach().clone().requires_grad_(n > 2) for n, x in enumerate(inputs)]
    loss, rows = str_loss(*leaves, sweeps=sweeps, backend=backend)
    loss.backward()
    return (rows.detach(), *(x.grad for x in leaves[3:]))


def _cosines(inputs: tuple[Tensor, ...], index: Tensor, pairs) -> Tensor:
    """In float64, of every token with the one that was chosen: two that are as near may be exchanged."""
    here, there = (torch.nn.functional.normalize(x.double(), dim=-1) for x in inputs)
    chosen = [(here[f] * there[m][index[n].long()]).sum(-1) for n, (f, m) in enumerate(pairs)]
    return torch.stack(chosen)


def prove_all(report: Report, device: torch.device, tiny: bool) -> None:
    if device.type == "cpu" and not interpreted():
        report.missed.append("Triton's kernels (no GPU, and TRITON_INTERPRET=1 is not set)")
        return
    for question in questions(device, tiny):
        report.attempt(question.name, lambda q=question: prove(report, q), 5)


def prove(report: Report, question: Question) -> None:
    """A PASS or FAIL for every dtype."""
    for dtype in (torch.float32, *HALVES):
        inputs = tuple(x if n in question.frees else x.to(dtype) for n, x in enumerate(question.inputs))
        exact = question.ask(tuple(x.double() for x in inputs), "chunked")
        plain = question.ask(inputs, "chunked")
        first, second = question.ask(inputs, "triton"), question.ask(inputs, "triton")
        moved = any(not torch.equal(a, b) for a, b in zip(first, second))
        errors = [(_error(a, e), _error(p, e)) for a, p, e in zip(first, plain, exact)]
        floors = [max(FLOOR, torch.finfo(a.dtype).eps / 2) for a in first]
        right = not moved and all(a <= TIMES * p + floor for (a, p), floor in zip(errors, floors))
        said = ", ".join(f"{ours:.1e} (torch {theirs:.1e})" for ours, theirs in errors)
        name = f"{question.name} {str(dtype).removeprefix('torch.')}"
        report.judge(right, name, ("two runs DIFFER; " if moved else "") + f"error over the largest entry {said}")


def _error(got: Tensor, exact: Tensor) -> float:
    """NaN counts as infinitely wrong."""
    off = (got.double() - exact.double()).abs().max() / exact.double().abs().max().clamp(min=1e-30)
    return off.item() if off.isfinite() else float("inf")


def time_sweeps(report: Report, device: torch.device, tiny: bool) -> None:
    """STR's loss and gradient, in two sweeps and in one: which of them methods should ask for."""
    time_all(report, device, tiny, "str_loss")


def slower_than_torch(milliseconds: dict[str, float]) -> list[str]:
    """The fused forms that the fastest of the others outruns."""
    others = [ms for name, ms in milliseconds.items() if not name.startswith("fused")]
    return [name for name, ms in milliseconds.items() if name.startswith("fused") and ms > min(others)]


def time_all(report: Report, device: torch.device, tiny: bool, of: str = "(?!str_loss)") -> None:
    """The kernels' table, row by row while time lasts: of operators whose name is `of`, a regular expression. A kernel
    that plain torch outruns at a size is named in a line of its own: it should not be used there."""
    peaks = device_peaks(device)
    report.say(f"INFO measured here: copy {peaks[0] / 1e9:.3g} GB/s, product {peaks[1] / 1e12:.3g} TFLOP/s")
    for case in (reduced if device.type == "cpu" else papers)(device, device.type == "cuda"):
        if not re.match(of, case.op):
            continue
        if tiny and case.op not in ("attention_map", "nearest"):  # tests/kernels/test_benchmark.py has them all
            continue
        if report.left < 5:
            report.missed.append(f"timing of {case.op} {case.shape} and what follows it")
            return
        best = {}
        for line in rows_of(case, device, peaks, 3):
            cells = [cell.strip() for cell in line.strip("| ").split("|")]
            report.row("Kernels", TABLE, cells)
            best[cells[2]] = float(cells[3]) if cells[3][0].isdigit() else float("inf")
        if slower := slower_than_torch(best):
            report.say(f"INFO plain torch is faster than {', '.join(slower)}: {case.op}, {case.shape}")
        del case
        if device.type == "cuda":
            torch.cuda.empty_cache()
