"""Image models of diffusers' `UNet2DConditionModel` with the frames of a clip as their batch: Stable Diffusion 1.x and
2.x, InstructPix2Pix and MagicBrush, and the toy world's.

InstructPix2Pix is given the source's picture too: the network's input is the noisy latents with the clean, unscaled
ones of the source beside them, zeros in the row that guidance calls unconditional (Brooks et al. 2023, section 3.2).
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor

from ...engine.call import Evaluation
from ...engine.plan import PLAIN, EditPlan
from .taps import tapped
from .text import embedding_for
from .unet import DiffusersUNet


class UNet2D(DiffusersUNet):
    """See `Denoiser`. A prompt may have one embedding for all frames or one per frame."""

    framewise = True
    fewest_frames = 1

    @property
    def sees_source(self) -> bool:
        return self.network.config.in_channels == 2 * self.channels

    def predict(self, evaluation: Evaluation, plan: EditPlan = PLAIN) -> Tensor:
        rows, frames = evaluation.latents.shape[:2]
        x = evaluation.latents.to(self.device)
        if self.sees_source:
            x = torch.cat([x, self._pictures(evaluation)], 2)
        x = rearrange(x.to(self.network.dtype), "r f c h w -> (r f) c h w")
        text = torch.cat([embedding_for(p, frames, self.device, self.network.dtype) for p in evaluation.prompts])
        with tapped(self.network, self, evaluation, plan):
            output = self.running(plan, evaluation)(x, evaluation.label, text, return_dict=False)[0]
        return rearrange(output, "(r f) c h w -> r f c h w", r=rows).float()

    def _pictures(self, evaluation: Evaluation) -> Tensor:
        """[R, F, C, h, w] the source's clean latents as the VAE gave them, zeros in the unconditional row."""
        if evaluation.image is None:
            raise ValueError(f"'{self.name}' is given the source's picture at every evaluation, and there is none")
        image = evaluation.image.to(self.device) / self.scaling_factor
        given = torch.tensor([row.role != "unconditional" for row in evaluation.rows], device=self.device)
        return image * given.view(-1, 1, 1, 1, 1)
