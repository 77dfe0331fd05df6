"""What torch would hold at most, counted on shapes alone: nothing is computed, so any size fits any machine.

Each operation is asked for the shape of what it gives (torch's FakeTensorMode), and the storages that are alive are
added up. What an operation takes inside itself and gives back at its end, as a convolution's workspace, is not seen.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..kernels import dispatch


class Counted(TorchDispatchMode):
    """Bytes of the tensors that were made while it lasts: `live` now, `peak` at most."""

    def __init__(self):
        super().__init__()
        self.live = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._see(leaf.untyped_storage())
        return result

    def _see(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._known:
            self._known.add(key)
            self.live += size
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._gone, key, size)

    def _gone(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


def without_weights(network: nn.Module) -> None:
    """Gives a network on the meta device zeros for weights, which take no memory."""
    for module in network.modules():
        for held in (module._parameters, module._buffers):
            for name, tensor in held.items():
                if tensor is not None:
                    zeros = torch.zeros((), dtype=tensor.dtype).expand(tensor.shape)
                    held[name] = nn.Parameter(zeros, False) if held is module._parameters else zeros


@contextmanager
def counting(network: nn.Module) -> Iterator[Counted]:
    """While it lasts, nothing is computed, and what would be held beside the weights is counted.

    Args:
        network: one that is to run; its weights become shapes, and stay so.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(allow_non_fake_inputs=True), Counted() as counted:
        for module in network.modules():
            for name, weight in module._parameters.items():
                if weight is not None:
                    module._parameters[name] = nn.Parameter(torch.empty(weight.shape, dtype=weight.dtype), False)
            for name, table in module._buffers.items():
                if table is not None:
                    module._buffers[name] = torch.empty(table.shape, dtype=table.dtype)
        counted.live = counted.peak = 0
        yield counted


@contextmanager
def unlaunched(launch: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Triton is chosen wherever a GPU would choose it, and its launchers run as they are, with all the room that they
    take; in place of each kernel `launch` is called."""
    from ..kernels.attention_map.fused import map_kernel

    with (
        patch.object(dispatch, "_why_not", lambda x: None),
        patch.object(type(map_kernel), "run", lambda kernel, *args, **kwargs: launch()),
    ):
        yield
