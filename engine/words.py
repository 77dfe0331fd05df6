"""The words everything else is said in: the places of a model, the rows of a batch, a prompt, and how a clip lies in
its latent.

All frozen: ComfyUI caches a node's output and hands the same object to many consumers. Those that hold tensors are
equal to themselves only.

One alphabet of shapes, here and everywhere: R rows, F frames (of the latent), C channels, h w latent size, N tokens,
H heads, D head size, S steps, L text tokens, E text width. Level k counts noise: 0 is clean, S is the noisiest.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

Half = Literal["encoder", "middle", "decoder"]
Role = Literal["source", "source_negative", "unconditional", "negative", "positive"]


@dataclass(frozen=True)
class Row:
    """What one row of a batch is. The source's rows hold the source's latents, all others those of the edit.

    "unconditional" is for models that also see the source's picture: negative prompt, no picture.
    """

    role: Role
    region: int = 0  # which region of the edit it belongs to

    @property
    def of_source(self) -> bool:
        return self.role in ("source", "source_negative")

    def __str__(self) -> str:
        return self.role if not self.region else f"{self.role} of region {self.region + 1}"


SOURCE, SOURCE_NEGATIVE, UNCONDITIONAL = Row("source"), Row("source_negative"), Row("unconditional")
NEGATIVE, POSITIVE = Row("negative"), Row("positive")


@dataclass(frozen=True)
class Site:
    """One attention layer of a model, as methods see it."""

    layer: str  # the model's own name for it, stable across runs
    kind: Literal["spatial", "temporal", "cross", "joint"]
    block: str  # sites of one block belong together: STR pairs its spatial and its temporal one
    level: int  # 0 is the latent's resolution, each level coarser; `Model.grid` knows the sizes
    order: int  # position in the forward pass
    half: Half = "decoder"  # of a UNet
    place: tuple[int, int] | None = None  # in a decoder: (which of its stages with attention, which layer there)


@dataclass(frozen=True)
class Block:
    """A place in a model's decoder whose features can be read and replaced."""

    name: str
    kind: Literal["stage", "residual"]  # the output of a stage, or what a residual block adds to its input
    stage: int  # which stage of the decoder, 0 the coarsest
    level: int  # resolution of the features, as in `Site`
    place: tuple[int, int] | None = None  # of a residual block: that of the attention after it, if there is one


@dataclass(frozen=True, eq=False)
class Prompt:
    """A text as a model reads it. `cond` belongs to the backbone: methods hand it on and look at the rest."""

    cond: Mapping[str, Any]
    text: str
    encoder: str  # fingerprint of the text encoder that made it
    # [L] the text at each position, a space after a word's end; "" where there is none. Where a position ends within a
    # character, its bytes are as `surrogateescape` decodes them.
    tokens: tuple[str, ...] = ()
    frames: int = 1  # 1: for all frames alike; else a text for each of so many

    def select(self, positions: Sequence[int]) -> Prompt:
        """The prompt for some frames of the clip. What `cond` holds is taken along its first axis."""
        if self.frames == 1:
            return self
        at = list(positions)
        cond = {k: v[at] if isinstance(v, Tensor) and len(v) == self.frames else v for k, v in self.cond.items()}
        return replace(self, cond=cond, frames=len(at))


def require_text(text: str) -> None:
    """ValueError for what is no text: half of a surrogate pair, which no file, no screen and no tokenizer takes."""
    at = next((i for i, c in enumerate(text) if "\ud800" <= c <= "\udfff"), None)
    if at is not None:
        raise ValueError(f"character {at + 1} of a text is half of one (a lone surrogate): type that place again")


@dataclass(frozen=True)
class Layout:
    """Where a pixel is in the latent, in space and time."""

    pixels: int  # a frame's height and width over the latent's
    frames: int = 1  # pixel frames in a latent frame
    first_alone: bool = False  # the first latent frame is one pixel frame, as causal video VAEs have it
    again: int = 0  # after so many latent frames one is alone again (MiniMax H3: 5); 0: never
    last: int = 0  # how many latent frames the last such group has in a whole clip

    @property
    def _group(self) -> int:
        """Pixel frames until a latent frame is alone again."""
        return 1 + (self.again - 1) * self.frames

    def latent_frames(self, pixel_frames: int) -> int:
        """How many latent frames a clip takes, its last group filled up."""
        if self.again:
            groups, rest = divmod(pixel_frames, self._group)
            return groups * self.again + (1 + -(-(rest - 1) // self.frames) if rest else 0)
        if self.first_alone:
            return 1 + -(-(pixel_frames - 1) // self.frames)
        return -(-pixel_frames // self.frames)

    def pixel_frames(self, latent_frames: int) -> int:
        """How many pixel frames so many latent frames hold."""
        if self.again:
            groups, rest = divmod(latent_frames, self.again)
            return groups * self._group + (1 + (rest - 1) * self.frames if rest else 0)
        return 1 + (latent_frames - 1) * self.frames if self.first_alone else latent_frames * self.frames

    def fitting(self, pixel_frames: int) -> int:
        """The most frames of a clip that fill whole latent frames."""
        latent = self.latent_frames(pixel_frames)
        latent -= self.pixel_frames(latent) > pixel_frames
        while self.again and latent > 1 and latent % self.again != self.last:
            latent -= 1
        return self.pixel_frames(latent)

    def filled(self, pixel_frames: int) -> int:
        """The fewest frames, not less than these, that fill whole latent frames."""
        return next(n for n in itertools.count(pixel_frames) if self.fitting(n) == n)

    def span(self, latent_frame: int) -> range:
        """The pixel frames of one latent frame."""
        if self.again:
            return range(self.pixel_frames(latent_frame), self.pixel_frames(latent_frame + 1))
        start = latent_frame * self.frames
        if not self.first_alone:
            return range(start, start + self.frames)
        return range(max(0, start - self.frames + 1), start + 1)

    def require_mask(self, mask: Tensor, latents: Tensor) -> None:
        """Refuses a mask [F or 1, H, W] in pixels that is not of the clip whose latents [F, C, h, w] these are.

        Raises:
            ValueError: another number of frames, or another size.
        """
        frames, _, h, w = latents.shape
        clip = self.pixel_frames(frames)
        if len(mask) != 1 and self.latent_frames(len(mask)) != frames:
            raise ValueError(
                f"the mask has {len(mask)} frames and the clip {clip}: give one mask a frame, or one for all"
            )
        size, want = tuple(mask.shape[1:]), (h * self.pixels, w * self.pixels)
        if size != want:
            raise ValueError(
                f"the mask is {size[1]}x{size[0]} pixels and the clip {want[1]}x{want[0]}: make the mask from the same "
                "frames that were encoded"
            )

    def cells(self, mask: Tensor, grid: tuple[int, int]) -> Tensor:
        """A mask [F or 1, H, W] in pixels -> [T or 1, 1, h, w] of 0 and 1: the latent cells with any of it in them.

        A latent frame is masked where any of its pixel frames is. Half white counts, not any: a mask that was a video
        has faint specks around its edge.
        """
        cells = (F.adaptive_max_pool2d(mask[:, None].float(), tuple(grid)) >= 0.5).float()
        if len(cells) == 1 or (self.frames == 1 and not self.first_alone):
            return cells
        spans = [self.span(t) for t in range(self.latent_frames(len(cells)))]
        return torch.stack([cells[[i for i in span if i < len(cells)]].amax(0) for span in spans])


class Model(Protocol):
    """What a control may know of a model: its facts, and nothing that computes."""

    name: str
    fingerprint: str  # of the network's weights
    sites: tuple[Site, ...]  # attention layers in the order they run
    blocks: tuple[Block, ...]  # what the feature seam sees, in the order they run
    layout: Layout
    framewise: bool  # frames do not see each other: they may be evaluated in chunks
    sees_source: bool  # the network is given the source's picture (`Evaluation.image`), as InstructPix2Pix

    def grid(self, place: Site | Block, shape: Sequence[int]) -> tuple[int, int, int]:
        """(F, h, w) of the tokens or features at a place, for latents of shape [..., F, C, h, w]."""
        ...

    def bytes(self, rows: int, frames: int, size: tuple[int, int], grad: bool = False) -> int:
        """Memory of one evaluation beside the weights, reckoned for latents of this size."""
        ...
