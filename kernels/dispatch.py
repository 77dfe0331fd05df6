"""The one rule for choosing between an operator's reference, its chunked torch form and its Triton kernel.

`auto` takes Triton when the tensors are on a GPU that Triton supports and the operator has no obstacle, else chunked;
and chunked too where Triton then turns out not to be able to build the kernel, on a machine without a C compiler, say.
Any other wish is an order: it is carried out, or refused with the reason. `WEFT_KERNELS` in the environment
stands in for `auto`, so one variable can take the kernels out of a misbehaving run.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from logging import getLogger
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor

Backend = Literal["auto", "reference", "chunked", "triton"]
KERNEL_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
OLDEST_TRITON = (3, 3)  # older ones abort the process while they compile some of the kernels for Hopper
log = getLogger(__name__)
_unbuilt: set[tuple[str, str]] = set()  # fused functions that this process has found it cannot build; it would again


def choose(backend: Backend, x: Tensor, obstacle: str | None = None) -> Literal["reference", "chunked", "triton"]:
    """The implementation to run.

    Args:
        backend: the caller's wish.
        x: the operator's main input; its device and dtype decide.
        obstacle: what the operator's kernel cannot do with this call, in words; None if nothing.
    Raises:
        ValueError: the wish is unknown, or it is "triton" and cannot be met.
    """
    source = f"backend={backend!r}"
    if backend == "auto":
        backend = os.environ.get("WEFT_KERNELS", "auto")
        source = f"WEFT_KERNELS={backend!r}"
    if backend not in get_args(Backend):
        raise ValueError(f"{source} is not one of {', '.join(get_args(Backend))}")
    if backend in ("reference", "chunked"):
        return backend
    reason = _why_not(x) or obstacle
    if reason is None:
        return "triton"
    if backend == "triton":
        raise ValueError(f"{source} asks for the Triton kernel, but {reason}")
    _say_once(reason)
    return "chunked"


def fused_or(plain: Callable, module: str, name: str, backend: Backend) -> Callable:
    """A fused function, which takes what `plain` takes; `plain` from the first time on that its kernel is not built.

    Args:
        module, name: where it is, as in "em.fused", "em_sums_fused"; imported at the call.
        backend: the caller's wish; if that, or WEFT_KERNELS, orders Triton, what goes wrong is raised.
    """

    def call(*args):
        if (module, name) in _unbuilt:
            return plain(*args)
        try:
            return getattr(import_module(f".{module}", __package__), name)(*args)
        except (torch.OutOfMemoryError, getattr(torch, "AcceleratorError", torch.OutOfMemoryError)):
            raise  # it was built: the device or its memory failed
        except Exception as error:
            if backend == "triton" or os.environ.get("WEFT_KERNELS") == "triton":
                raise
            _unbuilt.add((module, name))
            reason = f"{type(error).__name__}: {error}".partition("\n")[0]
            log.warning(
                "chunked torch from here on, as Triton cannot build %s here (%s). WEFT_KERNELS=chunked in the "
                "environment keeps it from trying", name, reason
            )  # fmt: skip
        return plain(*args)

    return call


def interpreted() -> bool:
    """Whether Triton kernels run in its CPU interpreter. Tests only: thousands of times slower."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def architecture(x: Tensor) -> str:
    """The one of `specs.ARCHITECTURES` whose launches suit a tensor's device; in the interpreter "sm_80"."""
    return _architecture(x.device.index or 0) if x.is_cuda else "sm_80"


@cache
def _architecture(index: int) -> str:
    if torch.version.hip:
        return "gfx942"
    capability = torch.cuda.get_device_capability(index)
    if capability == (8, 0):
        return "sm_80"
    # by shared memory: workstation and consumer GPUs have 99 KiB a block, data center ones since Hopper 227
    return "sm_90" if capability[0] in (9, 10) else "sm_89"


def _why_not(x: Tensor) -> str | None:
    """Why no Triton kernel at all can take this tensor, or None."""
    version = _triton_version()
    if version is None:
        return "Triton is not installed"
    if version < OLDEST_TRITON:
        return f"Triton is older than {'.'.join(map(str, OLDEST_TRITON))}"
    if not (x.is_cuda or interpreted()):
        return f"the tensors are on the {x.device.type}, which Triton does not compile for"
    if x.is_cuda and not torch.version.hip and torch.cuda.get_device_capability(x.device) < (8, 0):
        return "the kernels need an NVIDIA GPU of compute capability 8.0 (Ampere) or newer"
    if x.dtype not in KERNEL_DTYPES:
        return f"the kernels take float32, float16 and bfloat16, not {str(x.dtype).removeprefix('torch.')}"
    return None


@cache
def _triton_version() -> tuple[int, int] | None:
    """(major, minor) of the Triton that is installed, read without importing it; (0, 0) if it does not say."""
    found = find_spec("triton")
    if found is None or not found.origin:
        return None
    version = re.search(r"^__version__ = ['\"](\d+)\.(\d+)", Path(found.origin).read_text(), re.MULTILINE)
    return (int(version[1]), int(version[2])) if version else (0, 0)


@cache
def _say_once(reason: str) -> None:
    log.info("chunked torch instead of a Triton kernel: %s", reason)
