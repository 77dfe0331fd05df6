"""ComfyUI runs nodes under `torch.inference_mode`, whose tensors no gradient can pass. The two ways out."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor, nn

P, T = ParamSpec("P"), TypeVar("T")


def plain_torch(function: Callable[P, T]) -> Callable[P, T]:
    """Runs `function` outside inference mode and without gradients, so that what it makes can be used with them."""

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        with torch.inference_mode(False), torch.no_grad():
            return function(*args, **kwargs)

    return run


def is_ordinary(tensor: Tensor) -> bool:
    """False for a tensor that autograd cannot save: made in inference mode, or moved from one that was."""
    if tensor.is_inference():
        return False
    try:
        _ = tensor._version  # inference weights moved outside inference mode hide, but keep no version counter
    except RuntimeError:
        return False
    return True


def ordinary(tensor: Tensor) -> Tensor:
    """The tensor, or a copy of it that autograd can save."""
    if is_ordinary(tensor):
        return tensor
    with torch.inference_mode(False), torch.no_grad():
        return tensor.detach().clone()


def make_ordinary(module: nn.Module) -> None:
    """Replaces, in place, the parameters and buffers of `module` that autograd could not save.

    What several of its parts share, they share afterwards.
    """
    made: dict[int, Tensor] = {}
    stores = [store for part in module.modules() for store in (part._parameters, part._buffers)]
    held = [(store, name, tensor) for store in stores for name, tensor in store.items() if tensor is not None]
    for store, name, tensor in held:
        if is_ordinary(tensor):
            continue
        if id(tensor) not in made:
            copy = ordinary(tensor)
            trained = tensor.requires_grad
            made[id(tensor)] = nn.Parameter(copy, trained) if isinstance(tensor, nn.Parameter) else copy
        store[name] = made[id(tensor)]
