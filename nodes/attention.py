from __future__ import annotations

from typing import get_args

from comfy_api.v0_0_2 import io

from ..methods import injection
from ..methods.spatio_temporal import SpatioTemporalAttention
from . import sockets


class WeftSpatioTemporalAttention(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="WeftSpatioTemporalAttention",
            **sockets.found_by("tune-a-video", "cross-frame attention", "extended attention"),
            display_name="Spatio-Temporal Attention (Weft)",
            category="Weft/plan",
            description="Lets every frame look at all frames, so that an image model edits a clip as one thing.",
            inputs=[
                sockets.plan_input(),
                io.Int.Input(
                    "frames",
                    default=0,
                    min=0,
                    max=2**15,
                    tooltip="A frame looks at so many frames on each side. 0: at all of them; the time grows with the "
                    "square of the frames.",
                ),
            ],
            outputs=[sockets.Plan.Output(display_name="plan", tooltip="For the next method, or the sampler.")],
        )

    @classmethod
    def execute(cls, frames, plan=None):
        return io.NodeOutput(sockets.plan_or_empty(plan).then(SpatioTemporalAttention(frames=frames)))


class WeftFeatureInjection(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="WeftFeatureInjection",
            **sockets.found_by("plug and play", "pnp", "plug-and-play", "flatten"),
            display_name="Feature Injection (Weft)",
            category="Weft/plan",
            description="In the first steps, the edit takes its layout from the source's features.",
            inputs=[
                sockets.plan_input(),
                io.Int.Input(
                    "feature_steps",
                    default=40,
                    min=0,
                    max=1000,
                    tooltip="Steps from the first in which residual features are the source's: 40 of 50 in the papers. "
                    "More keep the layout better.",
                ),
                io.Int.Input(
                    "attention_steps",
                    default=40,
                    min=0,
                    max=1000,
                    tooltip="The same for queries and keys of self-attention: 40 of 50 in COVE, 25 in TokenFlow.",
                ),
                io.Combo.Input(
                    "places",
                    options=list(get_args(injection.Places)),
                    default="plug_and_play",
                    tooltip="Layers that take part: those of plug-and-play and TokenFlow, or those of FLATTEN.",
                ),
            ],
            outputs=[sockets.Plan.Output(display_name="plan", tooltip="For the next method, or the sampler.")],
        )

    @classmethod
    def execute(cls, plan=None, **numbers):
        return io.NodeOutput(sockets.plan_or_empty(plan).then(injection.FeatureInjection(**numbers)))
