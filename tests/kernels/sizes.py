"""What an operator makes: how large its largest tensor is, which is the memory claim of a chunked form, and by what."""

from collections import Counter

from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Largest(TorchDispatchMode):
    """`with Largest() as seen: ...` leaves in `seen.elements` the size of the largest tensor any operation returned."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if not func.is_view:
            sizes = (x.numel() for x in tree_leaves(result) if hasattr(x, "numel"))
            self.elements = max(self.elements, *sizes, 0)
        return result


class Operations(TorchDispatchMode):
    """`with Operations(n) as seen: ...` counts in `seen.count`, by name, what returned a tensor of n elements or more,
    views aside; `seen.width` is the least last axis of a softmax."""

    def __init__(self, elements=0):
        super().__init__()
        self.elements, self.count, self.width = elements, Counter(), float("inf")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        name = func._schema.name.removeprefix("aten::")
        if not func.is_view and any(x.numel() >= self.elements for x in tree_leaves(result) if hasattr(x, "numel")):
            self.count[name] += 1
        if name == "_softmax":
            self.width = min(self.width, result.shape[-1])
        return result
