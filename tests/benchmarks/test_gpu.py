"""The GPU command, whole, at sizes for a CPU and Triton's interpreter."""

import os
import re
import subprocess
import sys
import time
from importlib.util import find_spec

import pytest

from weft.benchmarks.gpu import report as report_module
from weft.benchmarks.gpu.kernels import slower_than_torch
from weft.benchmarks.gpu.report import Report
from weft.tests.conftest import ROOT


@pytest.fixture
def report(tmp_path):
    return Report(tmp_path, "# heading", time.monotonic() + 100)


def page(report):
    return (report.out / "gpu.md").read_text()


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
def test_the_whole_command_runs_at_tiny_sizes(tmp_path):
    env = dict(os.environ, TRITON_INTERPRET="1", OMP_NUM_THREADS="1")
    env.pop("WEFT_KERNELS", None)
    command = [sys.executable, "-m", "weft.benchmarks.gpu", "--device", "cpu", "--tiny", "--out", str(tmp_path)]
    run = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert run.returncode == 0, run.stdout + run.stderr
    text = (tmp_path / "gpu.md").read_text()
    for op in ("str_loss", "attention_map", "em_values", "gather_attention", "windowed_topk", "nearest", "merged"):
        assert re.search(rf"PASS {op}\w* .*float32", text), op
    for part in ("toy edit twice", "encode in 8 GB", "decode in 8 GB", "24 frames in the memory of 8"):
        assert f"PASS {part}" in text
    for method in ("COVE", "TokenFlow", "FateZero", "Gather-swap", "STEM", "STR-Match", "Coupled flow"):
        assert re.search(rf"\| random .* \| {method}", text), method
    assert re.search(r"PASS str_loss and gradient in one sweep .* bfloat16", text)
    assert "INFO native gradient: skipped" in text
    assert "## Kernels" in text
    assert "FAIL" not in text
    assert "Not reached" not in text


def test_a_kernel_that_plain_torch_outruns_is_named():
    assert slower_than_torch({"eager": 3.0, "chunked": 2.0, "fused": 2.5, "fused, one sweep": 1.0}) == ["fused"]
    assert slower_than_torch({"eager": float("inf"), "chunked": 2.0, "fused": 1.0}) == []
    assert slower_than_torch({"eager": 1.0}) == []


def test_no_gpu_is_said_before_anything_runs(tmp_path):
    command = [sys.executable, "-m", "weft.benchmarks.gpu", "--device", "cpu", "--out", str(tmp_path / "out")]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert run.returncode == 2
    assert "no GPU was found: --tiny tries the command on a CPU" in run.stderr
    assert not (tmp_path / "out").exists()


def test_what_fails_is_told_and_the_next_part_runs(report):
    def broken():
        raise ValueError("no such size")

    report.attempt("first", broken)
    report.attempt("second", lambda: report.passed("second", "all right"))
    assert "FAIL first: ValueError: no such size" in page(report)
    assert "PASS second: all right" in page(report)
    assert report.failed == 1
    assert "broken" in (report.out / "errors.txt").read_text()


def test_what_would_not_end_in_time_is_not_begun(report, monkeypatch):
    monkeypatch.setattr(report_module.time, "monotonic", lambda: report.deadline - 5)
    report.attempt("long", lambda: report.fail("long", "was begun"), seconds=10)
    assert report.missed == ["long"]
    assert "Not reached before the deadline: long." in page(report)
    assert report.failed == 0


def test_a_table_is_there_as_soon_as_it_has_a_row(report):
    report.row("Methods", "name | seconds", ["plain", "0.1"])
    assert "## Methods\n\n| name | seconds |\n|---|---|\n| plain | 0.1 |" in page(report)
