"""What the rest of the pack knows of a model."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Literal, Protocol

import torch
from torch import Tensor

from ..engine.nouns import Block, Control, Evaluation, Prompt, Site
from ..engine.schedule import Schedule

Part = Literal["network", "vae", "text_encoder"]


class Backbone(Protocol):
    """A model that edits clips.

    Two forms of a clip's latents: on a wire they are what ComfyUI's own VAE nodes give (unscaled, [F, C, h, w] for a
    2-D VAE); inside the engine they are scaled for the network, always [F, C, h, w]. `encode`, `decode`, `invert` and
    `edit` speak the first, everything within a run the second.
    """

    name: str
    fingerprint: str  # of the weights: two models that differ in any tensor differ here
    device: torch.device
    sites: tuple[Site, ...]  # attention layers in the order they run
    blocks: tuple[Block, ...]  # what the feature seam sees, in the order they run
    framewise: bool  # frames do not see each other: they may be evaluated in chunks
    sees_source: bool  # the network is given the source's picture (`Evaluation.image`), as InstructPix2Pix
    pixels_per_cell: int  # a frame's height and width over the latent's

    def encode(self, frames: Tensor) -> Tensor:
        """Frames [F, H, W, 3] in 0..1 -> wire latents. ValueError on a shape or size the model cannot take."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Wire latents -> frames [F, H, W, 3] float32 in 0..1, on the CPU."""
        ...

    def scale(self, latents: Tensor) -> Tensor:
        """Wire latents -> the network's [F, C, h, w]. ValueError on a wrong shape."""
        ...

    def unscale(self, latents: Tensor) -> Tensor:
        """The network's [F, C, h, w] -> wire latents, on the CPU."""
        ...

    def embed(self, text: str) -> Prompt: ...

    def schedule(self, steps: int) -> Schedule: ...

    def predict(self, evaluation: Evaluation, controls: Sequence[Control] = ()) -> Tensor:
        """The network's own output [R, F, C, h, w] in float32, with the attention and feature seams of `controls`.

        Differentiable in `evaluation.latents` where gradients are enabled. The model is as before when this returns
        or raises.
        """
        ...

    def resident(self, part: Part, cells: int = 0) -> AbstractContextManager[None]:
        """While it lasts, the part is on `device`, with room to evaluate `cells` latent cells (rows x frames x h x w)
        at once; moved there by whoever manages memory."""
        ...
