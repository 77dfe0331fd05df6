from __future__ import annotations

from torch import Tensor

from ..tiles import computing_dtype


def attention_map_reference(q: Tensor, k: Tensor, scale: float) -> Tensor:
    """The definition: softmax over the keys, then the mean over the heads."""
    q, k = (x.to(computing_dtype(x.dtype)) for x in (q, k))
    return (q @ k.mT * scale).softmax(-1).mean(1)
