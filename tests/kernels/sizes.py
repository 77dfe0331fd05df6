"""How large the largest tensor is that an operator makes: the memory claim of a chunked form, as a number."""

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
