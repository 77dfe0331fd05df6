from __future__ import annotations

import json
from typing import get_args

from comfy_api.v0_0_2 import io

from ..engine.inversion import invert
from ..methods import stem
from . import sockets
from .host import NodeMonitor
from .inversion import way_inputs
from .modifiers import latents_of
from .trajectory import resume_folder, resume_input


def stem_inputs() -> list[io.Input]:
    """What every use of the bases asks for."""
    return [
        io.Int.Input(
            "bases",
            default=256,
            min=1,
            max=4096,
            tooltip="How many bases stand for all tokens of the clip in each layer. The paper's 256; fewer are faster.",
        ),
        io.Int.Input("iterations", default=5, min=1, max=50, tooltip="Rounds of expectation and maximisation."),
        io.Float.Input(
            "temperature",
            default=0.01,
            min=0.0001,
            max=10.0,
            step=0.001,
            round=0.0001,
            tooltip="How softly tokens are shared out among bases. At 0.01 nearly each goes to one.",
        ),
        io.Combo.Input(
            "space",
            options=list(get_args(stem.Space)),
            default="key_per_head",
            tooltip="What bases are made of: the keys of each head, as released, or the layer's tokens, as the paper "
            "words it.",
        ),
        io.Combo.Input(
            "init",
            options=list(get_args(stem.Init)),
            default="normal",
            tooltip="Bases start as noise with the tokens' mean and deviation, or as tokens drawn at random.",
        ),
        io.Int.Input(
            "em_frames",
            default=0,
            min=0,
            max=2**15,
            tooltip="Frames that share bases. 0: all, as in the paper. 8 is the authors' released setting, whose "
            "memory does not grow with the clip.",
        ),
        sockets.seed_input("Of the bases' starts, drawn anew at every step and layer."),
        io.Boolean.Input(
            "skip_dead",
            default=False,
            tooltip="Leave out bases that no token chose. Off as released; on helps where bases are many.",
        ),
        io.Int.Input(
            "tokens_per_base",
            default=2,
            min=0,
            max=1024,
            tooltip="A layer with few tokens gets fewer bases: its tokens over this. 0: never.",
        ),
    ]


class WeftSTEMInversion(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="WeftSTEMInversion",
            **sockets.found_by("stem", "em", "expectation maximisation"),
            display_name="STEM Inversion (Weft)",
            category="Weft/invert",
            description="Inverts a clip with self-attention on a few hundred bases that all its frames share.",
            inputs=[
                sockets.Model.Input("model", tooltip="The model that will edit."),
                io.Latent.Input("latent", tooltip="The source clip, from Encode Frames."),
                io.Conditioning.Input("source_prompt", tooltip="Describes the source clip as it is."),
                io.Int.Input("steps", default=50, min=1, max=1000, tooltip="Steps of the inversion and of the edit."),
                *stem_inputs(),
                sockets.Plan.Input("plan", optional=True, tooltip="What other methods do; the bases act inside them."),
                *way_inputs(),
                resume_input(),
            ],
            outputs=[
                sockets.Trajectory.Output(display_name="trajectory", tooltip="For Edit Sampler."),
                sockets.Plan.Output(
                    display_name="replay",
                    tooltip="The same attention for Edit Sampler: with the source's prompt and cfg 1 it gives the clip "
                    "back.",
                ),
                io.String.Output(display_name="log", tooltip="Bases and dead bases of each step as JSON."),
            ],
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
        resume=False,
        **numbers,
    ):
        monitor = NodeMonitor(steps)
        replay = sockets.plan_or_empty(plan).then(stem.STEMAttention(**numbers))
        trajectory = invert(
            model,
            latents_of(latent),
            sockets.from_conditioning(source_prompt),
            plan=replay,
            steps=steps,
            convention=convention,
            evaluations=evaluations,
            resume=resume_folder(resume),
            monitor=monitor,
        )
        return io.NodeOutput(trajectory, replay, json.dumps(monitor.records))


class WeftSTEMAttention(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="WeftSTEMAttention",
            **sockets.found_by("stem", "em"),
            display_name="STEM Attention (Weft)",
            category="Weft/plan",
            description="Self-attention on a few hundred bases that all frames share, for any stage that takes a plan.",
            inputs=[
                sockets.plan_input(),
                *stem_inputs(),
                io.Boolean.Input(
                    "shared",
                    default=False,
                    tooltip="In an edit, all rows use the source's bases (ours), so that base k is the same in each.",
                ),
            ],
            outputs=[sockets.Plan.Output(display_name="plan", tooltip="For the next method, or the sampler.")],
        )

    @classmethod
    def execute(cls, plan=None, **numbers):
        return io.NodeOutput(sockets.plan_or_empty(plan).then(stem.STEMAttention(**numbers)))
