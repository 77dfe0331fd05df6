"""Lists of tokens, rewritten for merged tokens."""

from __future__ import annotations

from torch import Tensor


def translate(index: Tensor, merge: Tensor) -> Tensor:
    """`index` [M L] through `merge` [T0]; each merged token stays in a list once. The order within lists changes."""
    merged = merge.to(index.device)[index.clamp(min=0).long()].to(index.dtype)
    merged = merged.masked_fill(index < 0, -1).sort(dim=-1).values  # equal ones become neighbours
    merged[:, 1:].masked_fill_(merged[:, 1:] == merged[:, :-1], -1)
    return merged
