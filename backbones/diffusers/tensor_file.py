"""Tensors out of one file, a safetensors or a pickle that holds nothing but tensors."""

from __future__ import annotations

import zipfile
from pathlib import Path

import torch
from torch import Tensor

from .model_folder import SAFE_TORCH, Weights, require_held, sizes_in

SAFETENSORS = ".safetensors"
WRAPS = ("ema", "state_dict", "model")  # what some programs put around the tensors, best first
TRAINER = "module."  # a level that training on several GPUs leaves in names


def read_tensors(file: Path) -> dict[str, Tensor]:
    """All tensors of a file by name, in main memory.

    Raises:
        ValueError: no such file, one that is cut off, or a pickle that holds more than tensors.
    """
    if not file.is_file():
        raise ValueError(f"no file '{file.name}' in '{file.parent}'")
    if file.suffix == SAFETENSORS:
        from safetensors.torch import load_file

        sizes_in(Weights((file,), None, True))  # refuses what is no whole file, in plain words
        return _named(load_file(file))
    return _named(_unpickled(file))


def _unpickled(file: Path) -> dict[str, Tensor]:
    if tuple(int(n) for n in torch.__version__.split(".")[:2]) < SAFE_TORCH:
        raise ValueError(
            f"'{file.name}' is a pickle, which is safe to read from torch {'.'.join(map(str, SAFE_TORCH))} on; this is "
            f"{torch.__version__}: use a safetensors version of it"
        )
    try:
        found = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:
        raise ValueError(
            f"'{file.name}' is truncated, or a pickle that holds more than tensors, and was not loaded: download it "
            "again, or use a safetensors version of it"
        ) from error
    for wrap in WRAPS:
        if isinstance(found, dict) and isinstance(found.get(wrap), dict):
            found = found[wrap]
    tensors = {k: t for k, t in found.items() if isinstance(t, Tensor)} if isinstance(found, dict) else {}
    if not tensors:
        raise ValueError(f"'{file.name}' holds no tensors by name: is it the file of a model?")
    require_held(file, tensors.values())
    return tensors


def _named(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(TRAINER): tensor for name, tensor in tensors.items()}
