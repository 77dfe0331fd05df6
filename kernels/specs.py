"""Which kernel is launched how: one list for the launchers' choices and for the gate that compiles them ahead of time.

Each `<op>/fused.py` picks its tile sizes with a `config(...)` of shape and architecture, launches with what it returns,
and lists as `SPECS` what it returns at the shapes people run. Nothing is tuned at run time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

ARCHITECTURES = ("sm_80", "sm_89", "sm_90", "gfx942")
SHARED_MEMORY = {"sm_80": 163, "sm_89": 99, "sm_90": 227, "gfx942": 64}  # KiB a block
POINTER = {"float32": "*fp32", "float16": "*fp16", "bfloat16": "*bf16"}


@dataclass(frozen=True)
class Spec:
    """One compilation of one kernel."""

    kernel: object  # what @triton.jit made
    arch: str  # of ARCHITECTURES
    shape: str  # for a reader: "D=160 bfloat16"
    types: Mapping[str, str]  # of every argument that is not a constexpr: "*bf16", "*fp32", "i32", "fp32"
    meta: Mapping[str, object]  # every constexpr, and num_warps and num_stages

    def __str__(self):
        return f"{self.kernel.__name__} {self.shape} {self.arch}"


def specs(op: str) -> list[Spec]:
    """The specs of one operator, from all its fused*.py. Imports Triton."""
    modules = sorted(path.stem for path in (Path(__file__).parent / op).glob("fused*.py"))
    return [spec for name in modules for spec in import_module(f".{op}.{name}", __package__).SPECS]


def fused_ops() -> list[str]:
    """The operators that have a Triton kernel."""
    return sorted(path.parent.name for path in Path(__file__).parent.glob("*/fused.py"))
