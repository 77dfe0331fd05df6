from __future__ import annotations

from typing import get_args

from comfy_api.v0_0_2 import io

from ..engine.inversion import Noise, add_noise
from . import sockets
from .modifiers import latents_of


class WeftAddNoise(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="WeftAddNoise",
            **sockets.found_by("sdedit", "noise"),
            display_name="Add Noise (Weft)",
            category="Weft/invert",
            description="Puts one fixed noise on the clip at every level: a start for an edit without an inversion.",
            inputs=[
                sockets.Model.Input(
                    "model", tooltip="The model that will edit; an instruction model needs no inversion."
                ),
                io.Latent.Input("latent", tooltip="The source clip, from Encode Frames."),
                io.Int.Input("steps", default=10, min=1, max=1000, tooltip="Steps of the edit. VIA: 10 to 20."),
                sockets.seed_input("Another seed is another edit."),
                io.Combo.Input(
                    "noise",
                    options=list(get_args(Noise)),
                    default="shared",
                    tooltip="shared: the same for all frames, which makes them alike. per_frame: each its own.",
                ),
                io.Conditioning.Input(
                    "source_prompt",
                    optional=True,
                    tooltip="What guidance moves away from, if nothing else is connected there. Unconnected: no text.",
                ),
                sockets.Chunk.Input(
                    "chunk", optional=True, tooltip="From Chunk Select: gives a part of a clip the whole clip's noise."
                ),
            ],
            outputs=[sockets.Trajectory.Output(display_name="trajectory", tooltip="For Edit Sampler.")],
        )

    @classmethod
    def execute(cls, model, latent, steps, seed, noise, source_prompt=None, chunk=None):
        return io.NodeOutput(
            add_noise(
                model,
                latents_of(latent),
                model.text.embed("") if source_prompt is None else sockets.from_conditioning(source_prompt),
                steps=steps,
                noise=noise,
                seed=seed,
                frames=None if chunk is None else chunk.frames,
            )
        )
