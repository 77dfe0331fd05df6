"""Who moves weights: plain torch, or ComfyUI's model management where the pack runs inside it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import nn

from ..engine.autograd import make_ordinary


class Memory(Protocol):
    device: torch.device

    def default_dtype(self) -> torch.dtype: ...

    def has_bfloat16(self) -> bool:
        """Whether the device computes in bfloat16, and not only stores it."""
        ...

    def resident(self, module: nn.Module, activations: int = 0) -> contextmanager:
        """While it lasts, the module is on the device, with room for so many bytes beside it."""
        ...

    def free(self) -> int | None:
        """Bytes that may be taken on the device now, by those whose modules are resident; None where nothing is known
        to limit it."""
        ...

    def branch(self, own: nn.Module) -> Memory:
        """For a model that has `own` to itself and shares its other parts: lets `own` go when that model goes."""
        ...


class PlainMemory:
    """Moves a module to the device on first use and leaves it there."""

    def __init__(self, device: torch.device | str | None = None):
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))

    def default_dtype(self) -> torch.dtype:
        return torch.float32 if self.device.type == "cpu" else torch.float16

    def has_bfloat16(self) -> bool:
        if self.device.type != "cuda":
            return False
        return torch.version.hip is not None or torch.cuda.get_device_capability(self.device)[0] >= 8

    @contextmanager
    def resident(self, module: nn.Module, activations: int = 0) -> Iterator[None]:
        with torch.inference_mode(False), torch.no_grad():
            module.to(self.device)
            make_ordinary(module)
        yield

    def free(self) -> int | None:
        if self.device.type != "cuda":
            return None
        kept = torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)  # by torch, for later
        return torch.cuda.mem_get_info(self.device)[0] + kept

    def branch(self, own: nn.Module) -> Memory:
        return self  # it keeps nothing


class ComfyMemory:
    """Loads through `comfy.model_management`: ComfyUI makes room, offloads and unloads as for its own models."""

    def __init__(self):
        import comfy.model_management as management

        self.management = management
        self.device = management.get_torch_device()
        self._patchers: dict[int, object] = {}

    def default_dtype(self) -> torch.dtype:
        if self.device.type == "cpu":
            return torch.float32
        if self.management.should_use_fp16(self.device):
            return torch.float16
        return torch.bfloat16 if self.management.should_use_bf16(self.device) else torch.float32

    def has_bfloat16(self) -> bool:
        return self.device.type != "cpu" and self.management.should_use_bf16(self.device)

    @contextmanager
    def resident(self, module: nn.Module, activations: int = 0) -> Iterator[None]:
        patcher = self._patchers.get(id(module))
        if patcher is None:
            patcher = self._patchers[id(module)] = _patcher(module, self.management)
        # Whole or not at all: ComfyUI's partial loading leaves plain torch layers behind on the CPU.
        self.management.load_models_gpu([patcher], memory_required=activations, force_full_load=True)
        make_ordinary(module)
        yield

    def free(self) -> int | None:
        return int(self.management.get_free_memory(self.device)) if self.device.type != "cpu" else None

    def branch(self, own: nn.Module) -> Memory:
        return _Branch(self, own)


class _Branch:
    """A memory of its own for one module; all others are the trunk's, which must not load them twice."""

    def __init__(self, trunk: ComfyMemory, own: nn.Module):
        self.trunk, self.own, self.device, self._memory = trunk, own, trunk.device, ComfyMemory()

    def default_dtype(self) -> torch.dtype:
        return self.trunk.default_dtype()

    def has_bfloat16(self) -> bool:
        return self.trunk.has_bfloat16()

    def free(self) -> int | None:
        return self.trunk.free()

    def resident(self, module: nn.Module, activations: int = 0) -> contextmanager:
        return (self._memory if module is self.own else self.trunk).resident(module, activations)

    def branch(self, own: nn.Module) -> Memory:
        return _Branch(self.trunk, own)


def _patcher(module: nn.Module, management):
    from comfy.model_patcher import ModelPatcher

    class Holder(nn.Module):
        """ComfyUI sets `device` on what it loads; a diffusers model has a read-only property of that name."""

        def __init__(self):
            super().__init__()
            self.device = None
            self.held = module

    class GradSafePatcher(ModelPatcher):
        """Every move happens outside inference mode, so that gradients can pass the weights afterwards."""

        def load(self, *args, **kwargs):
            with torch.inference_mode(False), torch.no_grad():
                return super().load(*args, **kwargs)

        def unpatch_model(self, *args, **kwargs):
            with torch.inference_mode(False), torch.no_grad():
                return super().unpatch_model(*args, **kwargs)

        def partially_unload(self, *args, **kwargs):
            with torch.inference_mode(False), torch.no_grad():
                return super().partially_unload(*args, **kwargs)

    return GradSafePatcher(
        Holder(), load_device=management.get_torch_device(), offload_device=management.unet_offload_device()
    )
