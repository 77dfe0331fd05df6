"""Lists of tokens to look at, one a query: checked once, when they are made, and not at every call that uses them."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Lists:
    """Lists into `tokens` tokens. Making one reads the range of `index`, which waits for a GPU; moving or using it does
    not.

    Raises:
        ValueError: not integers [M L], or out of range.
    """

    index: Tensor  # [M L] integers in [-1, tokens), int32 from here on; -1 is padding
    tokens: int
    full: bool = field(init=False, default=True)  # no padding

    def __post_init__(self):
        if self.index.ndim != 2 or self.index.dtype not in (torch.int32, torch.int64):
            raise ValueError(
                f"want one list of token indices per query, integers [M L]; got {self.index.dtype} "
                f"{[*self.index.shape]}"
            )
        if self.index.numel():
            least, most = torch.stack(self.index.aminmax()).tolist()
            if least < -1 or most >= self.tokens:
                raise ValueError(f"index must lie in [-1, {self.tokens}), but holds {least if least < -1 else most}")
            object.__setattr__(self, "full", least >= 0)
        object.__setattr__(self, "index", self.index.int().contiguous())

    def to(self, device: torch.device) -> Lists:
        """The same on a device, where they need no checking again."""
        moved = object.__new__(Lists)
        for name, value in {**vars(self), "index": self.index.to(device)}.items():
            object.__setattr__(moved, name, value)
        return moved

    def require(self, q: Tensor, k: Tensor) -> None:
        """Refuses queries [... M D] and tokens [... T D] that these lists are not about."""
        if (len(self.index), self.tokens) != (q.shape[-2], k.shape[-2]):
            raise ValueError(
                f"want one list of token indices per query, integers [{q.shape[-2]} L], into {k.shape[-2]} tokens; "
                f"got {len(self.index)} lists into {self.tokens}"
            )
        if self.index.device != q.device:
            raise ValueError(f"q is on {q.device}, but the lists are on {self.index.device}")


def check_tokens(q: Tensor, k: Tensor, v: Tensor) -> None:
    """Refuses anything but q [... M D] and k, v [... T D] of one floating dtype on one device."""
    shapes = f"q {[*q.shape]}, k {[*k.shape]}, v {[*v.shape]}"
    if q.ndim < 2 or k.ndim < 2 or k.shape != v.shape or q.shape[:-2] != k.shape[:-2] or q.shape[-1] != k.shape[-1]:
        raise ValueError(f"want q [... M D] and k, v [... T D] with equal leading dimensions and D; got {shapes}")
    if not q.is_floating_point() or q.dtype != k.dtype or q.dtype != v.dtype:
        raise ValueError(f"want q, k and v in one floating-point dtype, got {q.dtype}, {k.dtype}, {v.dtype}")
    if any(x.device != q.device for x in (k, v)):
        raise ValueError(f"q is on {q.device}, but k and v are on {k.device} and {v.device}")
