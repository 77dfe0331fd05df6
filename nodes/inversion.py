from __future__ import annotations

from typing import get_args

from comfy_api.v0_0_2 import io

from ..engine.inversion import Convention, invert
from . import sockets
from .host import NodeMonitor
from .modifiers import latents_of
from .trajectory import resume_folder, resume_input


def chunk_frames_input() -> io.Input:
    return io.Int.Input(
        "chunk_frames",
        default=0,
        min=0,
        max=2**15,
        optional=True,
        tooltip="Frames evaluated at a time by an image model: fewer need less memory and give the same result. 0: as "
        "many as fit; video models and methods that look across the clip take all.",
    )


def way_inputs() -> list[io.Input]:
    """How to invert, for every inversion."""
    return [
        io.Combo.Input(
            "convention",
            options=list(get_args(Convention)),
            default="warm_start",
            optional=True,
            tooltip="warm_start inverts the sampler's own steps and reconstructs far better. paper is what "
            "the papers' code does; with models that predict v it is poor.",
        ),
        io.Int.Input(
            "evaluations",
            default=1,
            min=1,
            max=10,
            optional=True,
            tooltip="Network evaluations per step for warm_start. More reconstruct better and edit less well.",
        ),
    ]


class WeftDDIMInversion(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="WeftDDIMInversion",
            **sockets.found_by("ddim inversion", "invert", "noise inversion"),
            display_name="DDIM Inversion (Weft)",
            category="Weft/invert",
            description="Finds the noise that the model would turn into this clip, and every level on the way.",
            inputs=[
                sockets.Model.Input("model", tooltip="The model that will edit."),
                io.Latent.Input("latent", tooltip="The source clip, from Encode Frames."),
                io.Conditioning.Input("source_prompt", tooltip="Describes the source clip as it is."),
                io.Int.Input(
                    "steps",
                    default=50,
                    min=1,
                    max=1000,
                    tooltip="Steps of the inversion and of the edit. Fewer are faster and follow the source less well.",
                ),
                sockets.Plan.Input("plan", optional=True, tooltip="Attention methods that shape the inversion too."),
                *way_inputs(),
                chunk_frames_input(),
                io.Int.Input(
                    "edit_steps",
                    default=0,
                    min=0,
                    max=1000,
                    optional=True,
                    tooltip="Steps of the edit, if it is to take fewer than the inversion; must divide its steps. "
                    "COVE: 50 of 100. 0: as many.",
                ),
                resume_input(),
            ],
            outputs=[sockets.Trajectory.Output(display_name="trajectory", tooltip="For Edit Sampler.")],
        )

    @classmethod
    def execute(
        cls,
        model,
        latent,
        source_prompt,
        steps,
        plan=None,
        convention="warm_start",
        evaluations=1,
        chunk_frames=0,
        edit_steps=0,
        resume=False,
    ):
        trajectory = invert(
            model,
            latents_of(latent),
            sockets.from_conditioning(source_prompt),
            steps=steps,
            convention=convention,
            evaluations=evaluations,
            plan=sockets.plan_or_empty(plan),
            chunk_frames=chunk_frames,
            edit_steps=edit_steps,
            resume=resume_folder(resume),
            monitor=NodeMonitor(steps),
        )
        return io.NodeOutput(trajectory)
