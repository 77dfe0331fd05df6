"""Every operator of `kernels/` as eager torch, chunked and fused, in one run on one device.

    python -m weft.benchmarks.kernels [--device cuda] [--out benchmarks/results/kernels_cuda.md]

The floor is what this device would take to move the bytes and do the products of the formula once, by the bandwidth and
the matrix rate measured at the start of the same run; so "x floor" is how far an implementation is from ideal. Peak is
the memory above the inputs.
"""

from __future__ import annotations

import argparse
import datetime
import platform
import sys
from pathlib import Path

import torch

from .kernel_cases import Case, papers, reduced
from .measure import milliseconds, peak_bytes


def device_peaks(device: torch.device) -> tuple[float, float]:
    """Bytes a second of a large copy, and flops a second of a large matrix product (bfloat16 on a GPU)."""
    gpu = device.type == "cuda"
    x = torch.randn(2**28 if gpu else 2**24, device=device)
    y = torch.empty_like(x)
    bandwidth = 2 * x.nbytes / (1e-3 * milliseconds(lambda: y.copy_(x), device, runs=5))
    n = 8192 if gpu else 1024
    a = torch.randn(n, n, device=device).to(torch.bfloat16 if gpu else torch.float32)
    return bandwidth, 2 * n**3 / (1e-3 * milliseconds(lambda: a @ a, device, runs=5))


def rows_of(case: Case, device: torch.device, peaks: tuple[float, float], runs: int) -> list[str]:
    floor = 1e3 * max(case.bytes / peaks[0], case.flops / peaks[1])
    lines, first = [], None
    for name, call in case.calls.items():
        try:
            ms = milliseconds(call, device, runs)
            peak = peak_bytes(call, device) / 1e6
        except torch.OutOfMemoryError:
            lines.append(f"| {case.op} | {case.shape} | {name} | out of memory | | | | | | |")
            continue
        first = first or (ms, peak)
        numbers = [
            f"{ms:.3g}", f"{first[0] / ms:.2f}", f"{peak:.1f}", f"{first[1] / peak:.1f}",
            f"{case.bytes / ms / 1e6:.3g}", f"{case.flops / ms / 1e9:.3g}", f"{ms / floor:.1f}",
        ]  # fmt: skip
        lines.append(f"| {case.op} | {case.shape} | {name} | {' | '.join(numbers)} |")
    return lines


def table(device: torch.device, runs: int) -> str:
    gpu = device.type == "cuda"
    peaks = device_peaks(device)
    name = torch.cuda.get_device_name(device) if gpu else f"{cpu_name()}, {torch.get_num_threads()} thread(s)"
    lines = [
        "# Kernels: eager torch, chunked, fused",
        "",
        f"{datetime.date.today()}, `{' '.join(['python -m weft.benchmarks.kernels', *sys.argv[1:]])}`, {name}, "
        f"torch {torch.__version__}. "
        f"Measured here: copy {peaks[0] / 1e9:.3g} GB/s, product {peaks[1] / 1e12:.3g} TFLOP/s.",
        "",
        "Papers' sizes." if gpu else
        "Reduced sizes, float32, CPU time. No GPU: the fused kernels were not run, and the times say little about one.",
        "Speed-up and memory ratio are against the first row of the same case; GB/s and TFLOP/s count the bytes and "
        "products of the formula, so recomputing makes them smaller.",
        "",
        "| op | shape | implementation | ms | speed-up | peak MB | memory ratio | GB/s | TFLOP/s | x floor |",
        "|---|---|---|--:|--:|--:|--:|--:|--:|--:|",
    ]  # fmt: skip
    for case in (papers if gpu else reduced)(device, gpu):
        lines += rows_of(case, device, peaks, runs)
        print(lines[-1], file=sys.stderr, flush=True)
        if gpu:
            torch.cuda.empty_cache()
    return "\n".join(lines) + "\n"


def cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--runs", type=int, default=3, help="timed calls, of which the median counts")
    parser.add_argument("--out", type=Path, help="a markdown file to write; default: print")
    options = parser.parse_args()
    torch.manual_seed(0)
    text = table(torch.device(options.device), options.runs)
    if options.out:
        options.out.write_text(text)
    else:
        print(text)
