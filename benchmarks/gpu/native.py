"""Gradients through ComfyUI's own networks, where the machine has a ComfyUI."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch

from .report import Report

ROOT = Path(__file__).resolve().parents[2]
TESTS = "tests/native/test_gradients.py"


def gradients(report: Report, device: torch.device) -> None:
    """`tests/native/test_gradients.py` on this device: what STR-Match reads of each family that core has, small and of
    random weights, Wan among them, against finite differences, with blocks evaluated again and without."""
    tree = os.environ.get("COMFYUI_PATH")
    if not tree or device.type == "cpu":
        why = "a CPU has them in CI" if device.type == "cpu" else "COMFYUI_PATH names no ComfyUI"
        report.say(f"INFO native gradient: skipped, {why}")
        return
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=short", TESTS]
    environment = {**os.environ, "WEFT_NATIVE_DEVICE": device.type}
    limit = max(1.0, report.left - 5)
    try:
        run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        report.missed.append("native gradient (stopped at the deadline)")
        return
    summary = run.stdout.strip().rpartition("\n")[2].strip("= ")
    report.judge(run.returncode == 0 and "passed" in summary, f"native gradient in {Path(tree).name}", summary)
    if run.returncode:
        (report.out / "errors.txt").open("a").write(f"{TESTS}\n{run.stdout[-20_000:]}\n")
