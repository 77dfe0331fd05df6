"""No GPU needed: every kernel is compiled ahead of time for four architectures, in a process of its own."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec

import pytest

from weft.kernels.specs import ARCHITECTURES, fused_ops
from weft.tests.kernels import compile_gate
from weft.tests.kernels.compile_gate import Unreadable, complaint, read_amd, read_nvidia

needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")


def gate(what):
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    run = subprocess.run(
        [sys.executable, compile_gate.__file__, what], env=env, capture_output=True, text=True, timeout=900
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return [json.loads(line) for line in run.stdout.splitlines()]


@needs_triton
@pytest.mark.parametrize("op", fused_ops())
def test_kernels_compile_without_spills(op):
    results = gate(op)
    assert {r["arch"] for r in results} == set(ARCHITECTURES), "an architecture has no spec"
    bad = [f"{r['name']}: {r['complaint']}" for r in results if r["complaint"]]
    assert not bad, "\n".join(bad)


@needs_triton
def test_a_spilling_kernel_is_rejected_everywhere():
    results = gate("--spilling")
    assert [r["arch"] for r in results] == list(ARCHITECTURES)
    for r in results:
        assert (r["complaint"] or "").startswith("spills: Usage("), r


NVIDIA = "Function some_kernel:\n REG:{} STACK:{} SHARED:0 LOCAL:0 CONSTANT[0]:384"
AMD = "    .vgpr_count:     {}\n    .vgpr_spill_count: {}\n    .private_segment_fixed_size: {}\n"


def test_reports_are_read():
    assert complaint(read_nvidia(NVIDIA.format(255, 0), 99 * 1024), 99) is None
    assert complaint(read_nvidia(NVIDIA.format(255, 8), 0), 99).startswith("spills")
    assert complaint(read_amd(AMD.format(128, 0, 0), 64 * 1024), 64) is None
    assert complaint(read_amd(AMD.format(128, 1, 0), 0), 64).startswith("spills")
    assert complaint(read_amd(AMD.format(128, 0, 16), 0), 64).startswith("spills")
    assert "shared memory" in complaint(read_nvidia(NVIDIA.format(32, 0), 99 * 1024 + 1), 99)


@pytest.mark.parametrize(
    "report", ["", "REG:12", "cuobjdump fatal   : Unknown option", AMD.replace(".vgpr_spill", "x")]
)
def test_a_report_that_cannot_be_read_is_no_pass(report):
    for read in (read_nvidia, read_amd):
        with pytest.raises(Unreadable):
            read(report, 0)
