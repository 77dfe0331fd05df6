"""Runs every file of `tests/kernels/fused/` in its own process: in Triton's interpreter, or on the GPU if there is one.

A new kernel needs no line here: put `test_<op>.py` into that folder.
"""

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

# The largest first: they take longest, and the others can go on beside them.
FILES = sorted((Path(__file__).parent / "fused").glob("test_*.py"), key=lambda file: (-file.stat().st_size, file))


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_fused(path):
    gpu = torch.cuda.is_available()
    env = dict(os.environ, TRITON_INTERPRET="0" if gpu else "1")
    env.pop("WEFT_KERNELS", None)
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", str(path)]
    run = subprocess.run(command, env=env, cwd=path.parents[3], capture_output=True, text=True, timeout=1800)
    summary = run.stdout.strip().rpartition("\n")[2]
    assert run.returncode == 0, f"{' '.join(command)}\n{run.stdout}\n{run.stderr}"
    assert re.search(r"\d+ passed", summary), f"no test ran: {summary}"
    # mutants read out of bounds on purpose, so they run in the interpreter only
    assert gpu or "skipped" not in summary, f"a kernel test was skipped: {summary}"
