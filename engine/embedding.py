"""What is asked of a model that puts pictures and texts into one space, where near means alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor


class Embedder(Protocol):
    """A model such as CLIP. All its vectors are float32, of length 1, and on the CPU."""

    name: str

    def embed_pictures(self, pictures: Tensor) -> Tensor:
        """[n, H, W, 3] in 0..1 -> [n, E]."""

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """n texts -> [n, E]."""
