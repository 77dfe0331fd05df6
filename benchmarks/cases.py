"""The held-out edits that all toy benchmarks share: clip i has a seed of its own."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ..engine.ports import Backbone
from ..toyworld import world

WEIGHTS = Path(world.__file__).parent / "weights"
CLIPS, FIRST_SEED = 48, 50_000  # clips 100 and up are for choosing numbers; no table counts them
KINDS = (("color",), ("shape",), ("color", "shape"))


@dataclass(frozen=True)
class Case:
    """One held-out edit."""

    index: int
    source: world.Clips
    target: world.Clips

    @classmethod
    def of(cls, index: int) -> Case:
        """Of the sprite: its color, its shape, or both, in turn."""
        generator = torch.Generator().manual_seed(FIRST_SEED + index)
        source = world.draw(1, generator)
        return cls(index, source, world.edit(source, generator, KINDS[index % len(KINDS)]))

    @classmethod
    def of_background(cls, index: int) -> Case:
        """Of the background's color and pattern. Where stripes begin, and which way they run, is not said."""
        case = cls.of(index)
        generator = torch.Generator().manual_seed(FIRST_SEED + index)
        return replace(case, target=world.edit(case.source, generator, ("background", "pattern")))

    @property
    def mask(self) -> Tensor:
        """[F, H, W] of 0 and 1: wherever the old or the new sprite is."""
        old, new = (world.sprite_alpha(clips)[0] for clips in (self.source, self.target))
        return ((old > 0) | (new > 0)).float()


def frames_of(clips: world.Clips) -> Tensor:
    """[F, H, W, 3] in 0..1."""
    return world.render(clips)[0][0].movedim(1, -1)


def through_vae(backbone: Backbone, frames: Tensor) -> Tensor:
    """[F, H, W, 3]: what the model's VAE makes of frames, which is the best that an edit can come to."""
    return backbone.codec.decode(backbone.codec.encode(frames))
