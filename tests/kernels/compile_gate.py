"""Compiles every kernel an operator may launch, for GPUs that need not be here, and reads what the compilers report.

    python tests/kernels/compile_gate.py str_loss        one line of JSON per spec: name and complaint (null if none)

A kernel passes with no spill and within the block's shared memory, which the compiler itself does not enforce. On
NVIDIA the sign of a spill is a stack (cuobjdump's LOCAL stays 0); on AMD spilled vector registers and scratch (spilled
scalar registers go to lanes of vector registers, not to memory). A report that cannot be read is a complaint too.
"""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


class Unreadable(Exception):
    pass


@dataclass(frozen=True)
class Usage:
    registers: int
    spilled: int  # bytes of stack on NVIDIA; registers and bytes of scratch, added up, on AMD
    shared: int  # bytes


def read_nvidia(report: str, shared: int) -> Usage:
    """From `cuobjdump -res-usage`."""
    found = re.search(r"REG:(\d+) STACK:(\d+)", report)
    if not found:
        raise Unreadable(f"no REG and STACK in cuobjdump's report: {report[:200]!r}")
    return Usage(int(found[1]), int(found[2]), shared)


def read_amd(assembly: str, shared: int) -> Usage:
    """From the metadata at the end of the assembly."""
    numbers = []
    for key in ("vgpr_count", "vgpr_spill_count", "private_segment_fixed_size"):
        found = re.search(rf"^\s*-?\s*\.{key}:\s*(\d+)\s*$", assembly, re.MULTILINE)
        if not found:
            raise Unreadable(f"no .{key} in the assembly")
        numbers.append(int(found[1]))
    return Usage(numbers[0], numbers[1] + numbers[2], shared)


def complaint(usage: Usage, limit_kib: int) -> str | None:
    if usage.spilled:
        return f"spills: {usage}"
    if usage.shared > limit_kib * 1024:
        return f"needs {usage.shared} bytes of shared memory, the block has {limit_kib * 1024}"
    return None


def usage(spec) -> Usage:
    """Compile one spec and read its report."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    nvidia = spec.arch.startswith("sm_")
    target = GPUTarget("cuda", int(spec.arch[3:]), 32) if nvidia else GPUTarget("hip", spec.arch, 64)
    options = {name: spec.meta[name] for name in ("num_warps", "num_stages") if name in spec.meta}
    constants = {name: value for name, value in spec.meta.items() if name not in options}
    names = spec.kernel.arg_names
    if set(names) != set(spec.types) | set(constants):
        raise Unreadable(
            f"the spec names other arguments than the kernel has: {set(names) ^ set(spec.types) ^ set(constants)}"
        )
    aligned = {(n,): [["tt.divisibility", 16]] for n, a in enumerate(names) if spec.types.get(a, "").startswith("*")}
    source = ASTSource(
        fn=spec.kernel,
        signature={name: spec.types.get(name, "constexpr") for name in names},
        constexprs=constants,
        attrs=aligned,
    )
    compiled = triton.compile(source, target=target, options=options)
    shared = compiled.metadata.shared
    if not nvidia:
        return read_amd(compiled.asm["amdgcn"], shared)
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(compiled.asm["cubin"])
        run = subprocess.run([tool, "-res-usage", cubin], capture_output=True, text=True)
    return read_nvidia(run.stdout + run.stderr, shared)


def verdict(spec, limit_kib: int) -> str | None:
    try:
        return complaint(usage(spec), limit_kib)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def spilling_specs() -> list:
    """A kernel that must be rejected: it keeps far more numbers alive than a thread has registers."""
    import triton
    import triton.language as tl

    from weft.kernels.specs import ARCHITECTURES, Spec

    @triton.jit
    def greedy_kernel(x, y, n, B: tl.constexpr):
        o = tl.arange(0, B)
        a = tl.load(x + o)
        b = tl.load(x + B + o)
        c = tl.load(x + 2 * B + o)
        for i in range(n):
            a, b, c = b + tl.sum(a) * i, c * tl.sum(b), a - tl.sum(c)
        tl.store(y + o, a + b * c)

    return [
        Spec(greedy_kernel, arch, "B=32768", {"x": "*fp32", "y": "*fp32", "n": "i32"}, {"B": 32768, "num_warps": 4})
        for arch in ARCHITECTURES
    ]


if __name__ == "__main__":
    where = importlib.util.spec_from_file_location("weft", ROOT / "weft.py")
    sys.modules["weft"] = importlib.util.module_from_spec(where)
    where.loader.exec_module(sys.modules["weft"])
    from weft.kernels.specs import SHARED_MEMORY, specs

    for spec in spilling_specs() if sys.argv[1] == "--spilling" else specs(sys.argv[1]):
        result = {"name": str(spec), "arch": spec.arch, "complaint": verdict(spec, SHARED_MEMORY[spec.arch])}
        print(json.dumps(result), flush=True)
