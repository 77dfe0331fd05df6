"""Text-to-video models of diffusers' `UNet3DConditionModel`: Zeroscope, ModelScope and the toy world's.

Frames are folded into the batch for spatial layers and pixels for temporal ones, rows first. Each spatial attention
has a temporal one beside it; `transformer_in` is temporal attention at full resolution with no spatial partner.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...engine.call import Evaluation
from ...engine.plan import PLAIN, EditPlan
from ...engine.words import Prompt
from .taps import tapped
from .text import embedding_for
from .unet import DiffusersUNet


class UNet3D(DiffusersUNet):
    """See `Denoiser`."""

    def predict(self, evaluation: Evaluation, plan: EditPlan = PLAIN) -> Tensor:
        x = evaluation.latents.to(self.device, self.network.dtype).transpose(1, 2)
        text = torch.cat([self._text(prompt) for prompt in evaluation.prompts])
        with tapped(self.network, self, evaluation, plan):
            output = self.running(plan, evaluation)(x, evaluation.label, text, return_dict=False)[0]
        return output.transpose(1, 2).float()

    def _text(self, prompt: Prompt) -> Tensor:
        if prompt.frames != 1:
            raise ValueError(f"'{self.name}' takes one prompt for all frames, got {prompt.frames}")
        return embedding_for(prompt, 1, self.device, self.network.dtype)
