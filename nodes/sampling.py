from __future__ import annotations

import json

from comfy_api.v0_0_2 import io

from ..backbones.preview import LatentPreview
from ..engine.check import check_edit, check_start
from ..engine.edit import edit
from ..engine.inversion import source_of
from ..engine.words import Prompt
from . import sockets, view
from .host import NodeMonitor
from .inversion import chunk_frames_input
from .modifiers import latents_of

ANY_STEPS = 2  # the early check asks for the clip and the words alone


class WeftEditSampler(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="WeftEditSampler",
            **sockets.found_by("sampler", "edit video", "video to video", "v2v"),
            display_name="Edit Sampler (Weft)",
            category="Weft/sample",
            description="Makes the edit: from the source's noise, under the new prompt and the plan.",
            inputs=[
                sockets.Model.Input("model", tooltip="The model the clip was inverted with."),
                sockets.Trajectory.Input(
                    "trajectory", lazy=True, tooltip="The source, from an inversion; it sets the steps."
                ),
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
                io.Latent.Input(
                    "source_latent",
                    optional=True,
                    tooltip="What the inversion takes. With source_prompt connected too, masks, words and methods are "
                    "checked before the inversion runs, and not after it.",
                ),
                io.Conditioning.Input(
                    "source_prompt", optional=True, tooltip="What the inversion takes: for the same early check."
                ),
            ],
            outputs=[
                io.Latent.Output(display_name="latent", tooltip="For Decode Frames."),
                io.String.Output(display_name="log", tooltip="Figures of each step as JSON, such as the gradient."),
            ],
        )

    @classmethod
    def check_lazy_status(
        cls,
        model,
        positive,
        trajectory=None,
        negative=None,
        plan=None,
        cfg=7.5,
        image_cfg=1.5,
        source_latent=None,
        source_prompt=None,
        **_,
    ):
        """Asks for the trajectory, which may take minutes, once everything else is as it should be."""
        if trajectory is not None:
            return []
        told, plan = _prompts(positive, negative), sockets.plan_or_empty(plan)
        check_start(model, plan, *told.values())
        if source_latent is not None and source_prompt is not None:
            prompt = sockets.from_conditioning(source_prompt)
            clip = source_of(model, latents_of(source_latent), prompt, steps=ANY_STEPS)
            check_edit(model, clip, plan=plan, guidance=cfg, image_guidance=image_cfg, **told)
        return ["trajectory"]

    @classmethod
    def execute(
        cls,
        model,
        trajectory,
        positive,
        negative=None,
        plan=None,
        cfg=7.5,
        seed=0,
        image_cfg=1.5,
        chunk_frames=0,
        **_,  # what is for the early check alone
    ):
        monitor = NodeMonitor(trajectory.schedule.steps, LatentPreview(model, trajectory))
        latents = edit(
            model,
            trajectory,
            **_prompts(positive, negative),
            plan=sockets.plan_or_empty(plan),
            guidance=cfg,
            image_guidance=image_cfg,
            chunk_frames=chunk_frames,
            seed=seed,
            monitor=monitor,
        )
        told = view.facts(records=monitor.records, steps=trajectory.schedule.steps)
        return io.NodeOutput({"samples": latents}, json.dumps(monitor.records), ui=told)


def _prompts(positive: list, negative: list | None) -> dict[str, Prompt]:
    """What the edit is told, by the names of `edit`."""
    told = {"positive": positive} | ({} if negative is None else {"negative": negative})
    return {name: sockets.from_conditioning(conditioning) for name, conditioning in told.items()}
