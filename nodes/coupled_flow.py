from __future__ import annotations

import json

from comfy_api.v0_0_2 import io

from ..backbones.preview import LatentPreview
from ..engine.inversion import source_of
from ..methods.coupled_flow import CoupledFlow, coupled_edit
from . import sockets, view
from .host import NodeMonitor
from .inversion import chunk_frames_input
from .modifiers import latents_of


class WeftCoupledEdit(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="WeftCoupledEdit",
            **sockets.found_by("flowedit", "flowalign", "inversion-free", "edit video", "video to video"),
            display_name="Coupled Edit (Weft)",
            category="Weft/sample",
            description="Makes the edit without an inversion: from the clip itself, by the difference of two prompts "
            "(FlowEdit, with FlowAlign's pull).",
            inputs=[
                sockets.Model.Input("model", tooltip="One whose prompts describe a clip, not an instruction model."),
                io.Latent.Input("latent", tooltip="The source clip, from Encode Frames."),
                io.Conditioning.Input("source_prompt", tooltip="Describes the clip as it is."),
                io.Conditioning.Input(
                    "target_prompt",
                    tooltip="Describes the edited clip: the source's words, but for what is to change.",
                ),
                sockets.Plan.Input("plan", optional=True, tooltip="Other methods, and regions."),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="White is edited. Outside it the latent stays the source's, to the bit.",
                ),
                io.Int.Input("steps", default=50, min=1, max=1000, tooltip="Noise levels of the whole range."),
                io.Float.Input(
                    "start",
                    default=0.66,
                    min=0.01,
                    max=1.0,
                    step=0.01,
                    tooltip="Share of the noise levels that are used, from the cleanest. More changes more, and takes "
                    "longer. FlowEdit: 0.66 for Stable Diffusion 3, 0.8 for Wan.",
                ),
                io.Float.Input(
                    "source_cfg",
                    default=3.5,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    tooltip="Guidance of the source. 1 saves one evaluation a step.",
                ),
                io.Float.Input(
                    "cfg",
                    default=13.5,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    tooltip="Guidance of the target. More above source_cfg changes more.",
                ),
                io.Int.Input(
                    "averages",
                    default=1,
                    min=1,
                    max=64,
                    tooltip="Draws of the noise at each step. More are steadier and take so many times longer.",
                ),
                io.Float.Input(
                    "pull",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.001,
                    round=False,
                    tooltip="Towards the source's estimate at each step (FlowAlign: 0.01). More keeps more.",
                ),
                sockets.seed_input("Of the noise: the same seed gives the same bits."),
                io.Conditioning.Input(
                    "negative",
                    optional=True,
                    tooltip="What guidance moves away from. Unconnected: no text. FlowAlign: the source's prompt.",
                ),
                chunk_frames_input(),
            ],
            outputs=[
                io.Latent.Output(display_name="latent", tooltip="For Decode Frames."),
                io.String.Output(display_name="log", tooltip="Figures of each step as JSON."),
            ],
        )

    @classmethod
    def execute(
        cls,
        model,
        latent,
        source_prompt,
        target_prompt,
        steps,
        start,
        source_cfg,
        cfg,
        averages,
        pull,
        seed,
        plan=None,
        mask=None,
        negative=None,
        chunk_frames=0,
    ):
        source = sockets.from_conditioning(source_prompt)
        solver = CoupledFlow(start, source_cfg, averages, pull)
        pictures = LatentPreview(model, source_of(model, latents_of(latent), source, steps))
        monitor = NodeMonitor(len(solver.levels(model.denoiser.schedule(steps))), pictures)
        latents = coupled_edit(
            model,
            latents_of(latent),
            source,
            sockets.from_conditioning(target_prompt),
            solver=solver,
            negative=None if negative is None else sockets.from_conditioning(negative),
            plan=sockets.plan_or_empty(plan),
            mask=mask,
            steps=steps,
            guidance=cfg,
            chunk_frames=chunk_frames,
            seed=seed,
            monitor=monitor,
        )
        told = view.facts(records=monitor.records, steps=monitor.total)
        return io.NodeOutput({"samples": latents}, json.dumps(monitor.records), ui=told)
