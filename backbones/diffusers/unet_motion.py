"""AnimateDiff: an image model with motion modules between its layers, diffusers' `UNetMotionModel`.

A motion module follows each residual block, after the spatial attention if there is one, and attends over the frames of
each pixel twice, with a table of positions that ends: clips are at most as long as that. The coarsest level has modules
with no spatial attention beside them; so has the middle of v1 and v3, which lack its module, spatial attention with no
temporal one beside it.
"""

from __future__ import annotations

from functools import cache

import torch
from einops import rearrange
from torch import Tensor, nn

from ...engine.call import Evaluation
from ...engine.plan import PLAIN, EditPlan
from .taps import tapped
from .text import embedding_for
from .unet import DiffusersUNet


class UNetMotion(DiffusersUNet):
    """See `Denoiser`. A prompt may have one embedding for all frames or, from diffusers 0.31 on, one per frame."""

    @staticmethod
    def most_frames(network: nn.Module) -> int:
        return network.config.motion_max_seq_length

    def predict(self, evaluation: Evaluation, plan: EditPlan = PLAIN) -> Tensor:
        frames = evaluation.latents.shape[1]
        x = rearrange(evaluation.latents.to(self.device, self.network.dtype), "r f c h w -> r c f h w")
        told = 1 if repeats_text() else frames
        text = torch.cat([embedding_for(p, told, self.device, self.network.dtype) for p in evaluation.prompts])
        with tapped(self.network, self, evaluation, plan):
            output = self.running(plan, evaluation)(x, evaluation.label, text, return_dict=False)[0]
        return rearrange(output, "r c f h w -> r f c h w").float()


@cache
def repeats_text() -> bool:
    """Whether this diffusers' class repeats a clip's text for its frames, as it did before 0.31, or wants it so."""
    import diffusers

    return tuple(int(n) for n in diffusers.__version__.split(".")[:2]) < (0, 31)
