"""What has to hold at once so that gradients pass core's networks. Each scope alone fails somewhere.

- Weights are loaded in inference mode, and autograd cannot save such tensors: for the length of a `with` they are
  aliases, normal tensors on the same memory. Nothing is copied.
- Weights that are not resident are streamed into a buffer that the next layer uses again: they are cloned as they come.
- Newer core picks kernels without a backward unless `model_management.in_training` says otherwise; kernels of
  comfy_kitchen that are left are sent to their eager bodies.
- Newer core's compiler records the allocations of a block, which a graph that outlives it breaks: it pauses.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import comfy.cli_args
import comfy.model_management as management
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ...engine.autograd import is_ordinary

KERNELS = "comfy_kitchen."


@contextmanager
def differentiable(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Gradients pass `model`, whatever core did to its weights, and all is as it was afterwards."""
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(ordinary_weights(model))
        stack.enter_context(cloned_streams(model, device))
        stack.enter_context(PlainKernels())
        stack.enter_context(_set(management, "in_training", True))
        stack.enter_context(_set(comfy.cli_args.args, "disable_comfy_compiler", True))
        yield


@contextmanager
def ordinary_weights(module: nn.Module) -> Iterator[None]:
    """Parameters and buffers that autograd cannot save are aliases that it can, for the length of a `with`."""
    saved = []
    with torch.inference_mode(False), torch.no_grad():
        for part in module.modules():
            for store in (part._parameters, part._buffers):
                for name, tensor in store.items():
                    if tensor is None or (new := _ordinary(tensor)) is None:
                        continue
                    saved.append((store, name, tensor))
                    store[name] = nn.Parameter(new, False) if isinstance(tensor, nn.Parameter) else new
    try:
        yield
    finally:
        for store, name, tensor in reversed(saved):
            store[name] = tensor


@contextmanager
def cloned_streams(module: nn.Module, device: torch.device) -> Iterator[None]:
    """Weights that are not on the device are cloned as they arrive there."""
    wrapped = []
    for part in module.modules():
        for kind in ("weight", "bias"):
            functions, tensor = getattr(part, f"{kind}_function", None), getattr(part, kind, None)
            if isinstance(functions, list) and isinstance(tensor, Tensor) and tensor.device != device:
                setattr(part, f"{kind}_function", [*functions, torch.clone])
                wrapped.append((part, f"{kind}_function", functions))
    try:
        yield
    finally:
        for part, name, functions in wrapped:
            setattr(part, name, functions)


class PlainKernels(TorchFunctionMode):
    """comfy_kitchen's ops have no backward: their eager bodies, which autograd follows, run instead."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if str(func).startswith(KERNELS):
            from comfy_kitchen.backends import eager

            func = getattr(eager, str(func).split(".")[1], func)
        return func(*args, **(kwargs or {}))


def _ordinary(tensor: Tensor) -> Tensor | None:
    """A normal tensor on the same memory; None where it is one already."""
    if hasattr(tensor, "_qdata"):  # quantised: a wrapper whose payload is what autograd meets
        inner = _ordinary(tensor._qdata)
        return None if inner is None else type(tensor.data)(inner, tensor._layout_cls, tensor._params)
    if is_ordinary(tensor):
        return None
    alias = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    return alias.set_(tensor.untyped_storage(), tensor.storage_offset(), tensor.shape, tensor.stride())


@contextmanager
def _set(owner, name: str, value) -> Iterator[None]:
    """A global of core's, where this version has it."""
    if not hasattr(owner, name):
        yield
        return
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)
