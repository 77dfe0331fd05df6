"""Proves and times the pack on a GPU, in order of worth, and stops at a deadline.

    python -m weft.benchmarks.gpu --minutes 8 --out DIR     # a GPU
    python -m weft.benchmarks.gpu --tiny --out DIR          # the same at sizes for a CPU and Triton's interpreter

DIR/gpu.md gets PASS and FAIL lines, tables, and what was not reached; DIR/errors.txt what went wrong, whole. The exit
status is 1 if anything failed. A machine without network: `run.sh` beside this file.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import re
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import torch

from ..kernels import cpu_name
from ..rows import origin
from . import kernels, memory, methods, models, native, toy
from .report import Report


def heading(device: torch.device, minutes: float) -> str:
    found = find_spec("triton") is not None
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()
    command = " ".join(["python -m weft.benchmarks.gpu", *sys.argv[1:]])
    return (
        f"# The pack on {name}\n\n{datetime.date.today()}, `{command}`, commit {origin()['commit']}, torch "
        f"{torch.__version__}, Triton {version('triton') if found else 'not there'}, Python "
        f"{platform.python_version()}; {minutes:g} minutes were given.\n"
    )


def parts(report: Report, device: torch.device, tiny: bool) -> dict[str, tuple[Callable[[], None], float]]:
    """What there is to do, in order of worth: name -> (call, seconds that it wants)."""
    size = models.TINY if tiny else models.FULL
    how = report, size, device, torch.bfloat16 if device.type == "cuda" else torch.float32
    return {
        "kernels": (lambda: kernels.prove_all(report, device, tiny), 10),
        "STR table": (lambda: kernels.time_sweeps(report, device, tiny), 15),
        "a long clip": (lambda: memory.on_a_long_clip(*how), 40),
        "methods on images": (lambda: methods.costs_on_images(*how), 20),
        "methods on video": (lambda: methods.costs_on_video(*how), 20),
        "native gradient": (lambda: native.gradients(report, device), 30),
        "kernel tests": (lambda: kernels.run_tests(report), 30),
        "toy edit": (lambda: toy.compare_devices(report, device), 10),
        "a small card": (lambda: memory.on_a_small_card(*how), 15),
        "kernel table": (lambda: kernels.time_all(report, device, tiny), 20),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=8, help="stop starting new parts after this long")
    parser.add_argument("--out", type=Path, required=True, help="folder for gpu.md and errors.txt")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--only", default="", help="parts whose name has this regular expression in it")
    parser.add_argument("--tiny", action="store_true", help="small sizes: does the command itself work?")
    options = parser.parse_args()
    device = torch.device(options.device, 0) if options.device == "cuda" else torch.device(options.device)
    if device.type == "cpu" and not options.tiny:
        parser.error("no GPU was found: --tiny tries the command on a CPU")
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "errors.txt").unlink(missing_ok=True)
    if device.type == "cpu":
        os.environ.setdefault("WEFT_KERNELS", "chunked")  # the interpreter is for the kernels' questions alone
    report = Report(options.out, heading(device, options.minutes), time.monotonic() + 60 * options.minutes)
    for name, (call, seconds) in parts(report, device, options.tiny).items():
        if re.search(options.only, name) and not (options.tiny and name == "kernel tests"):  # CI has them without it
            report.attempt(name, call, seconds)
    report.say(f"{report.failed} failed, {len(report.missed)} not reached")
    report.write()
    return int(report.failed > 0)


if __name__ == "__main__":
    sys.exit(main())
