"""What a segmenter, a detector and an embedder are asked, and what they answer. Frames are [H, W, 3] in 0..1.

Places are (x, y) in pixels of the frame, (0, 0) the middle of the pixel at the top left; boxes are (left, top, right,
bottom).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from ..engine.monitor import Monitor

Point = tuple[float, float]
Box = tuple[float, float, float, float]


@dataclass(frozen=True, eq=False)
class Prompts:
    """What is said of one thing in one frame."""

    points: tuple[Point, ...] = ()  # on it
    not_points: tuple[Point, ...] = ()  # not on it
    box: Box | None = None  # around it
    guess: Tensor | None = None  # one row of `Candidates.raw`: an earlier answer for the same frame

    @property
    def ambiguous(self) -> bool:
        """A lone click may mean a thing, a part of it, or what it is a part of."""
        return len(self.points) == 1 and not self.not_points and self.box is None and self.guess is None


@dataclass(frozen=True, eq=False)
class Candidates:
    """What a prompt may have meant: one mask, or several for a lone click."""

    masks: Tensor  # [M, H, W] bool
    scores: Tensor  # [M] about 0..1: what the model thinks of each, its guess at the IoU with the truth
    raw: Tensor  # [M, h, w] logits as the model makes them, to be asked again with


class Segmenter(Protocol):
    """A model that answers prompts with masks."""

    name: str
    follows: bool  # whether it has `follow`

    def look(self, frame: Tensor) -> Callable[[Prompts], Candidates]:
        """Reads a frame once, to be asked about it any number of times."""

    def follow(self, frames: Tensor, masks: dict[int, Tensor], monitor: Monitor) -> Iterator[tuple[int, Tensor, float]]:
        """Follows one thing by a memory of its own.

        Args:
            frames: [F, H, W, 3].
            masks: frame -> [H, W] bool, of the thing where it is known.

        Yields:
            (frame, mask [H, W] bool, confidence in 0..1), one for every frame that is not in `masks`.
        """


@dataclass(frozen=True)
class Detection:
    """One thing that a detector found."""

    box: Box
    score: float  # 0..1
    label: str


class Detector(Protocol):
    """A model that finds what a text names."""

    name: str

    def find(self, frame: Tensor, phrases: tuple[str, ...], threshold: float) -> tuple[list[Detection], float]:
        """(everything in a frame that scores at least `threshold`, in any order; the best score there is)."""


class Embedder(Protocol):
    """A model such as CLIP, which puts pictures and texts into one space, where near means alike.

    All its vectors are float32, of length 1, and on the CPU.
    """

    name: str

    def embed_pictures(self, pictures: Tensor) -> Tensor:
        """[n, H, W, 3] in 0..1 -> [n, E]."""

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """n texts -> [n, E]."""
