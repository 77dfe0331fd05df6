"""What self-attention costs as a clip grows: on bases (STEM), and of all tokens to all (spatio-temporal attention).

    python -m weft.benchmarks.stem_cost [--device cuda] [--out benchmarks/results/stem_cost_cpu.md]

One layer, all in one run: time of both, and the memory that the EM and both attentions take above their inputs. The
last two columns are the exponent p in "time ~ frames^p" between a row and the one before: 1 is linear, 2 quadratic.
"""

from __future__ import annotations

import argparse
import datetime
import math
import sys
from pathlib import Path

import torch
from torch.nn.functional import scaled_dot_product_attention

from ..kernels import em_attention, em_bases
from ..kernels.tiles import tile_budget
from .kernels import cpu_name
from .measure import milliseconds, peak_bytes

FRAMES = (8, 16, 32, 64)
TOKENS, HEADS, SIZE, BASES, ITERATIONS = 1024, 2, 32, 256, 5  # a layer of 32x32 cells
HEADINGS = (
    "frames", "tokens", "STEM ms", "dense ms", "EM peak MB", "STEM peak MB", "dense peak MB", "STEM p", "dense p",
)  # fmt: skip


def measured(frames: int, device: torch.device, runs: int) -> dict[str, float]:
    """Milliseconds and peak MB of one layer over `frames` frames."""
    generator = torch.Generator().manual_seed(frames)
    shape = HEADS, frames * TOKENS, SIZE
    q, k, v = (torch.randn(1, *shape, generator=generator).to(device) for _ in range(3))
    start = torch.randn(1, HEADS, BASES, SIZE, generator=generator).to(device)
    options = {"temperature": 0.01, "iterations": ITERATIONS, "keep_dead": False}

    def em():
        em_bases(k, v, start, **options)

    def stem():
        em_attention(q, k, v, start, **options)

    def dense():
        scaled_dot_product_attention(q, k, v)

    calls = {"EM": em, "STEM": stem, "dense": dense}
    times = {f"{name} ms": milliseconds(call, device, runs) for name, call in calls.items() if name != "EM"}
    return times | {f"{name} peak": peak_bytes(call, device) / 1e6 for name, call in calls.items()}


def table(device: torch.device, runs: int) -> str:
    gpu = device.type == "cuda"
    name = torch.cuda.get_device_name(device) if gpu else f"{cpu_name()}, {torch.get_num_threads()} thread(s)"
    lines = [
        "# Self-attention on bases and on all tokens, as a clip grows",
        "",
        f"{datetime.date.today()}, `{' '.join(['python -m weft.benchmarks.stem_cost', *sys.argv[1:]])}`, {name}, "
        f"torch {torch.__version__}.",
        "",
        f"One layer of {TOKENS} tokens a frame, {HEADS} heads of {SIZE}, float32, {BASES} bases, {ITERATIONS} rounds. "
        f"{'Wall time.' if gpu else 'CPU time.'} Peak: memory above the inputs; the attentions' includes their output. "
        f"EM goes through at most {4 * tile_budget(device) / 1e6:.0f} MB of responsibilities at a time.",
        "",
        "| " + " | ".join(HEADINGS) + " |",
        "|" + "--:|" * len(HEADINGS),
    ]
    before: tuple[int, dict[str, float]] | None = None
    for frames in FRAMES:
        now = measured(frames, device, runs)
        powers = ["", ""]
        if before:
            grown = math.log(frames / before[0])
            powers = [f"{math.log(now[m] / before[1][m]) / grown:.2f}" for m in ("STEM ms", "dense ms")]
        cells = [f"{now[m]:.0f}" for m in ("STEM ms", "dense ms")]
        cells += [f"{now[m]:.1f}" for m in ("EM peak", "STEM peak", "dense peak")]
        lines.append(f"| {frames} | {frames * TOKENS} | " + " | ".join(cells + powers) + " |")
        print(lines[-1], file=sys.stderr, flush=True)
        before = frames, now
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    text = table(torch.device(arguments.device), arguments.runs)
    arguments.out.write_text(text) if arguments.out else print(text)


if __name__ == "__main__":
    main()
