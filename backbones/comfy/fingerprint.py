"""Which weights a MODEL has, told by a few of them: the same in every process, and another for every LoRA on it."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

SAMPLES = 4096  # values of one tensor, spread over it


def fingerprint(kind: str, parts: Iterator[tuple[str, Any]]) -> str:
    """12 hex digits of names, shapes and values spread over every tensor.

    Args:
        parts: (name, anything): tensors by their values, containers by what they hold, the rest by how it prints.
    """
    digest = hashlib.sha256(kind.encode())
    for name, value in parts:
        digest.update(name.encode())
        for said in _said(value):
            digest.update(said)
    return digest.hexdigest()[:12]


def weights_of(patcher) -> Iterator[tuple[str, Any]]:
    """The network's weights as they were loaded, and the patches on each."""
    for name, (weight, *patches) in sorted(patcher.get_key_patches("diffusion_model.").items()):
        yield name, weight[0] if isinstance(weight, tuple) else weight
        yield name, [patch[:2] for patch in patches]


def _said(value: Any) -> Iterator[bytes]:
    if isinstance(value, Tensor):
        yield f"{list(value.shape)}{zlib.crc32(_sample(value))}".encode()
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _said(part)
    elif isinstance(value, dict):
        for key in sorted(value, key=str):
            yield str(key).encode()
            yield from _said(value[key])
    elif value is None or isinstance(value, (str, int, float, bool)):
        yield repr(value).encode()
    elif hasattr(value, "weights"):  # core's adapters: LoRA, LoHa, LoKr ...
        yield from _said((type(value).__name__, value.weights))


def _sample(tensor: Tensor) -> bytes:
    """So many bytes spread over it, whatever the type. Quantised tensors are told by what they store."""
    stored = getattr(tensor, "_qdata", tensor).detach()
    flat = stored.reshape(-1) if stored.is_contiguous() else stored.contiguous().reshape(-1)
    if flat.numel() > SAMPLES:
        at = torch.linspace(0, flat.numel() - 1, SAMPLES, dtype=torch.float64, device=flat.device).long()
        flat = flat.view(torch.uint8 if flat.element_size() == 1 else flat.dtype)[at]
    return flat.contiguous().view(torch.uint8).cpu().numpy().tobytes()
