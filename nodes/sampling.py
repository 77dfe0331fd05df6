from __future__ import annotations

import json

from comfy_api.v0_0_2 import io

from ..backbones.preview import LatentPreview
from ..engine.edit import edit
from . import sockets
from .host import NodeMonitor
from .inversion import chunk_frames_input


class WeftEditSampler(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="WeftEditSampler",
            display_name="Edit Sampler (Weft)",
            category="Weft/sample",
            description="Makes the edit: from the source's noise, under the new prompt and the plan.",
            inputs=[
                sockets.Model.Input("model", tooltip="The model the clip was inverted with."),
                sockets.Trajectory.Input("trajectory", tooltip="The source, from an inversion; it sets the steps."),
                io.Conditioning.Input("positive", tooltip="Describes the edited clip."),
                io.Conditioning.Input(
                    "negative",
                    optional=True,
                    tooltip="What guidance moves away from. Unconnected: the source's prompt, as STR-Match does.",
                ),
                sockets.Plan.Input("plan", optional=True, tooltip="The methods. Unconnected: the plain DDIM edit."),
                io.Float.Input(
                    "cfg",
                    default=7.5,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    tooltip="How strongly to follow the prompt. 1 is no guidance and twice as fast.",
                ),
                sockets.seed_input("For methods that draw random numbers. The plain edit and STR-Match draw none."),
                io.Float.Input(
                    "image_cfg",
                    default=1.5,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    optional=True,
                    tooltip="How strongly to keep to the source's picture. For instruction models (InstructPix2Pix); "
                    "others ignore it.",
                ),
                chunk_frames_input(),
            ],
            outputs=[
                io.Latent.Output(display_name="latent"),
                io.String.Output(display_name="log", tooltip="Figures of each step as JSON, such as the gradient."),
            ],
        )

    @classmethod
    def execute(
        cls, model, trajectory, positive, negative=None, plan=None, cfg=7.5, seed=0, image_cfg=1.5, chunk_frames=0
    ):
        monitor = NodeMonitor(trajectory.schedule.steps, LatentPreview(model, trajectory))
        latents = edit(
            model,
            trajectory,
            sockets.from_conditioning(positive),
            negative=sockets.from_conditioning(negative) if negative is not None else None,
            plan=sockets.plan_or_empty(plan),
            guidance=cfg,
            image_guidance=image_cfg,
            chunk_frames=chunk_frames,
            seed=seed,
            monitor=monitor,
        )
        return io.NodeOutput({"samples": latents}, json.dumps(monitor.records))
