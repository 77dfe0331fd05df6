"""Image models of diffusers' `UNet2DConditionModel` with the frames of a clip as their batch: Stable Diffusion 1.x and
2.x, InstructPix2Pix and MagicBrush, and the toy world's.

InstructPix2Pix is given the source's picture too: the network's input is the noisy latents with the clean, unscaled
ones of the source beside them, zeros in the row that guidance calls unconditional (Brooks et al. 2023, section 3.2).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from einops import rearrange, repeat
from torch import Tensor

from ..engine.autograd import ordinary
from ..engine.nouns import Control, Evaluation, Prompt
from .diffusers_unet import DiffusersUNet
from .taps import tapped


class UNet2DBackbone(DiffusersUNet):
    """See `Backbone`. A prompt may have one embedding for all frames or one per frame."""

    framewise = True
    fewest_frames = 1

    @property
    def sees_source(self) -> bool:
        return self.network.config.in_channels == 2 * self.channels

    def predict(self, evaluation: Evaluation, controls: Sequence[Control] = ()) -> Tensor:
        rows, frames = evaluation.latents.shape[:2]
        x = evaluation.latents.to(self.device)
        if self.sees_source:
            x = torch.cat([x, self._pictures(evaluation)], 2)
        x = rearrange(x.to(self.network.dtype), "r f c h w -> (r f) c h w")
        text = torch.cat([self._text(prompt, frames) for prompt in evaluation.prompts])
        grids = self._grids(evaluation.latents)
        with tapped(self.network, self.sites, self.blocks, grids, evaluation, controls):
            output = self.network(x, evaluation.timestep, text, return_dict=False)[0]
        return rearrange(output, "(r f) c h w -> r f c h w", r=rows).float()

    def _pictures(self, evaluation: Evaluation) -> Tensor:
        """[R, F, C, h, w] the source's clean latents as the VAE gave them, zeros in the unconditional row."""
        if evaluation.image is None:
            raise ValueError(f"'{self.name}' is given the source's picture at every evaluation, and there is none")
        image = evaluation.image.to(self.device) / self.vae.config.scaling_factor
        given = torch.tensor([row != "unconditional" for row in evaluation.rows], device=self.device)
        return image * given.view(-1, 1, 1, 1, 1)

    def _text(self, prompt: Prompt, frames: int) -> Tensor:
        """[F, L, E]"""
        embedding = ordinary(prompt.embedding).to(self.device, self.network.dtype)
        if len(embedding) not in (1, frames):
            raise ValueError(f"the prompt '{prompt.text}' is for {len(embedding)} frames, and this is {frames}")
        return repeat(embedding, "1 l e -> f l e", f=frames) if len(embedding) == 1 else embedding
