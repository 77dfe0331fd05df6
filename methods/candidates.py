"""Candidates: edits of one frame from different noise, of which somebody or something takes the best.

paper    VIA, Gu et al. 2024 (arXiv 2406.12831), section 4.1: the root pair that adaptation learns from
needs    a model that is given the source's picture; one frame
gives    pictures to choose from
differs  nothing
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..engine.edit import edit
from ..engine.inversion import add_noise
from ..engine.monitor import SILENT, Monitor
from ..engine.ports import Backbone
from ..engine.words import Prompt


def candidates(
    backbone: Backbone,
    frame: Tensor,
    instruction: Prompt,
    *,
    negative: Prompt | None = None,
    count: int = 4,
    seed: int = 0,
    steps: int = 10,
    guidance: float = 7.5,
    image_guidance: float = 1.5,
    monitor: Monitor = SILENT,
) -> Tensor:
    """Edits of one frame from different noise, for somebody to choose the best.

    Args:
        frame: [1, H, W, 3] in 0..1.
        negative: what guidance moves away from; by default the empty text.
        count: how many; the i-th is what `add_noise` with seed + i and `edit` give.

    Returns:
        [count, H, W, 3] in 0..1.

    Raises:
        ValueError: a model that takes no instructions, not one frame, no candidate wanted, or what `add_noise` and
            `edit` refuse.
    """
    require_instructed(backbone)
    require_frame(frame, "frame")
    if count < 1:
        raise ValueError(f"want at least 1 candidate, got {count}")
    latents, empty = backbone.codec.encode(frame), backbone.text.embed("") if negative is None else negative
    scales = {"guidance": guidance, "image_guidance": image_guidance}
    edits = []
    for i in range(count):
        trajectory = add_noise(backbone, latents, empty, steps=steps, seed=seed_of(seed, i))
        edits.append(edit(backbone, trajectory, instruction, monitor=_Share(monitor, i, count), **scales))
    return backbone.codec.decode(torch.cat(edits))


def seed_of(first: int, i: int) -> int:
    """The seed of the i-th candidate; after the largest of 64 bits comes 0."""
    return (first + i) % 2**64


class _Share(Monitor):
    """The i-th of n equal runs, told as one."""

    def __init__(self, monitor: Monitor, i: int, n: int):
        self.monitor, self.i, self.n = monitor, i, n

    def check(self) -> None:
        self.monitor.check()

    def progress(self, done: int, total: int, preview: Tensor | None = None) -> None:
        self.monitor.progress(self.i * total + done, self.n * total, preview)


def choose(pictures: Tensor, index: int, what: str = "candidates") -> Tensor:
    """[1, H, W, 3] one of the pictures. ValueError if there is no such one."""
    require_choice(len(pictures), index, what)
    return pictures[index : index + 1]


def require_choice(count: int, index: int, what: str = "candidates") -> None:
    """ValueError if there is no such one among so many. To be asked before they are made."""
    if not 0 <= index < count:
        raise ValueError(f"there are {what} 0 to {count - 1}, and no {index}")


def require_instructed(backbone: Backbone) -> None:
    """ValueError for a model that is not told what to do with a picture."""
    if not backbone.denoiser.sees_source:
        raise ValueError(
            f"'{backbone.name}' is not given the source's picture, and VIA wants an instruction model (InstructPix2Pix)"
        )


def require_frame(picture: Tensor, name: str) -> None:
    """ValueError for anything but one picture [1, H, W, 3]."""
    if picture.ndim != 4 or len(picture) != 1 or picture.shape[-1] != 3:
        raise ValueError(f"want one picture [1, H, W, 3] as {name}, got {list(picture.shape)}")
