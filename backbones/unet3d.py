"""Text-to-video models of diffusers' `UNet3DConditionModel`: Zeroscope, ModelScope and the toy world's.

Frames are folded into the batch for spatial layers and pixels for temporal ones, rows first. Each spatial attention
has a temporal one beside it; `transformer_in` is temporal attention at full resolution with no spatial partner.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..engine.autograd import ordinary
from ..engine.nouns import Control, Evaluation, Prompt
from .diffusers_unet import DiffusersUNet
from .taps import tapped


class UNet3DBackbone(DiffusersUNet):
    """See `Backbone`."""

    def predict(self, evaluation: Evaluation, controls: Sequence[Control] = ()) -> Tensor:
        x = evaluation.latents.to(self.device, self.network.dtype).transpose(1, 2)
        text = torch.cat([self._text(prompt) for prompt in evaluation.prompts])
        grids = self._grids(evaluation.latents)
        with tapped(self.network, self.sites, self.blocks, grids, evaluation, controls):
            output = self.network(x, evaluation.timestep, text, return_dict=False)[0]
        return output.transpose(1, 2).float()

    def _text(self, prompt: Prompt) -> Tensor:
        if len(prompt.embedding) != 1:
            raise ValueError(f"'{self.name}' takes one prompt for all frames, got {len(prompt.embedding)}")
        return ordinary(prompt.embedding).to(self.device, self.network.dtype)
