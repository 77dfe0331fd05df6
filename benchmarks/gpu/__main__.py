"""Proves and times the pack on a GPU, in order of worth, and stops at a deadline.

    python -m weft.benchmarks.gpu --minutes 8 --out DIR     # a GPU
    python -m weft.benchmarks.gpu --tiny --out DIR          # the same command at sizes for a CPU and Triton's interpreter

DIR/gpu.md gets PASS and FAIL lines, tables, and what was not reached; DIR/errors.txt what went wrong, whole. The exit
status is 1 if anything failed. A machine without network: `run.sh` beside this file.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import sys
import time
from pathlib import Path

import torch

from ..kernels import cpu_name
from ..rows import origin
from . import kernels, memory, methods, models, toy
from .report import Report


def heading(device: torch.device, minutes: float) -> str:
    triton = sys.modules.get("triton")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()
    command = " ".join(["python -m weft.benchmarks.gpu", *sys.argv[1:]])
    return (
        f"# The pack on {name}\n\n{datetime.date.today()}, `{command}`, commit {origin()['commit']}, torch "
        f"{torch.__version__}, Triton {triton.__version__ if triton else 'not loaded'}, Python "
        f"{platform.python_version()}; {minutes:g} minutes were given.\n"
    )


def run(report: Report, device: torch.device, tiny: bool) -> None:
    size = models.TINY if tiny else models.FULL
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    able = device.type == "cuda" or os.environ.get("TRITON_INTERPRET") == "1"
    if able:
        for question in kernels.questions(device, tiny):
            report.attempt(question.name, lambda q=question: kernels.prove(report, q), 5)
    else:
        report.missed.append("Triton's kernels: no GPU, and TRITON_INTERPRET=1 is not set")
    if not tiny:  # tests/kernels runs them in the interpreter
        report.attempt("the kernels' own tests", lambda: kernels.run_tests(report), 30)
    report.attempt("toy edit", lambda: toy.compare_devices(report, device), 10)
    report.attempt("methods on images", lambda: methods.costs_on_images(report, size, device, dtype), 20)
    report.attempt("methods on video", lambda: methods.costs_on_video(report, size, device, dtype), 20)
    report.attempt("the kernels' table", lambda: kernels.time_all(report, device, tiny), 20)
    report.attempt("a small card", lambda: memory.on_a_small_card(report, size, device, dtype), 15)
    report.attempt("a long clip", lambda: memory.on_a_long_clip(report, size, device, dtype), 40)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=8, help="stop starting new parts after this long")
    parser.add_argument("--out", type=Path, required=True, help="folder for gpu.md and errors.txt")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--tiny", action="store_true", help="small sizes: does the command itself work?")
    options = parser.parse_args()
    device = torch.device(options.device)
    if device.type == "cpu" and not options.tiny:
        parser.error("no GPU was found: --tiny tries the command on a CPU")
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "errors.txt").unlink(missing_ok=True)
    if device.type == "cpu":
        os.environ.setdefault("WEFT_KERNELS", "chunked")  # the interpreter is for the kernels' questions alone
    else:
        import triton  # noqa: F401  its version is told

        torch.cuda.init()
    report = Report(options.out, heading(device, options.minutes), time.monotonic() + 60 * options.minutes)
    run(report, device, options.tiny)
    report.say(f"{report.failed} failed, {len(report.missed)} not reached")
    report.write()
    return int(report.failed > 0)


if __name__ == "__main__":
    sys.exit(main())
