from __future__ import annotations

from torch import Tensor

MAX_HEAD = 160


def obstacle(q: Tensor, k: Tensor) -> str | None:
    """What the kernels cannot do with these queries and keys, or None."""
    if q.shape[-1] > MAX_HEAD:
        return f"head size {q.shape[-1]} is over {MAX_HEAD}"
    if 0 in q.shape or 0 in k.shape:
        return "there is nothing to attend to"
    return None
