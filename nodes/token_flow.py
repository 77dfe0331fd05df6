from __future__ import annotations

from typing import get_args

from comfy_api.v0_0_2 import io

from ..methods import token_flow
from . import sockets


class WeftTokenFlow(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="WeftTokenFlow",
            **sockets.found_by("tokenflow", "token flow", "edit video"),
            display_name="TokenFlow (Weft)",
            category="Weft/plan",
            description="Edits keyframes together and carries their tokens to the other frames along the source.",
            inputs=[
                sockets.plan_input(),
                io.Int.Input(
                    "batch",
                    default=8,
                    min=1,
                    max=1024,
                    tooltip="Frames that share a keyframe. The clip may have any length.",
                ),
                io.Int.Input(
                    "feature_steps",
                    default=40,
                    min=0,
                    max=1000,
                    tooltip="Steps from the first that take the source's residual features: 40 of 50. 0: none.",
                ),
                io.Int.Input(
                    "attention_steps",
                    default=25,
                    min=0,
                    max=1000,
                    tooltip="Steps from the first that take the source's queries and keys: 25 of 50. 0: none.",
                ),
                sockets.seed_input(
                    "Which frame of each batch is the keyframe, drawn anew at every step.", name="pivot_seed"
                ),
                io.Combo.Input(
                    "blend",
                    options=list(get_args(token_flow.Blend)),
                    default="sigmoid",
                    tooltip="How the keyframes of two batches are mixed: as released, or by distance alone (ours).",
                ),
            ],
            outputs=[sockets.Plan.Output(display_name="plan", tooltip="For the next method, or the sampler.")],
        )

    @classmethod
    def execute(cls, pivot_seed, feature_steps, attention_steps, plan=None, **numbers):
        control = token_flow.TokenFlow(seed=pivot_seed, **numbers)
        injected = {"feature_steps": feature_steps, "attention_steps": attention_steps}
        return io.NodeOutput(token_flow.with_injection(sockets.plan_or_empty(plan), control, **injected))
