from __future__ import annotations

from typing import get_args

from comfy_api.v0_0_2 import io

from ..methods import latent_blend
from . import sockets


class WeftLatentBlend(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="WeftLatentBlend",
            **sockets.found_by("blended diffusion", "mask", "inpaint"),
            display_name="Latent Blend (Weft)",
            category="Weft/plan",
            description="Keeps the source outside a mask.",
            inputs=[
                sockets.plan_input(),
                io.Mask.Input(
                    "mask",
                    tooltip="White is edited, from half white on. One mask a frame, or one for all, as large as the "
                    "frames that were encoded. Cover the old and the new shape.",
                ),
                io.Combo.Input(
                    "schedule",
                    options=list(get_args(latent_blend.Schedule)),
                    default="hard",
                    tooltip="hard: the source outside the mask at every step. paper_ramp: the edit comes into the mask "
                    "slowly (VIA). shrink: the edit is everywhere at first and is taken back to the mask.",
                ),
                io.Int.Input(
                    "dilate",
                    default=1,
                    min=0,
                    max=64,
                    tooltip="Grow the mask by this many latent cells (8 pixels each; 4 for the toy world).",
                ),
                io.Int.Input(
                    "feather",
                    default=0,
                    min=0,
                    max=64,
                    optional=True,
                    tooltip="Outside the mask, let the edit fade into the source over this many latent cells.",
                ),
            ],
            outputs=[sockets.Plan.Output(display_name="plan", tooltip="For the next method, or the sampler.")],
        )

    @classmethod
    def execute(cls, plan=None, **numbers):
        return io.NodeOutput(sockets.plan_or_empty(plan).then(latent_blend.LatentBlend(**numbers)))
