from __future__ import annotations

from comfy_api.v0_0_2 import io

from . import sockets
from .host import check


class WeftFromComfyModel(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="WeftFromComfyModel",
            display_name="From ComfyUI Model (Weft)",
            category="Weft/load",
            description="Lets this pack edit with ComfyUI's own MODEL and all that is on it: LoRAs, shifts, patches.",
            **sockets.found_by("wan", "ltx", "hunyuan", "checkpoint", "bridge"),
            inputs=[
                io.Model.Input("model", tooltip="From any of ComfyUI's loaders, LoRA or ModelSampling nodes."),
                io.Vae.Input("vae", tooltip="The VAE of this model."),
                io.Clip.Input(
                    "clip",
                    optional=True,
                    tooltip="For Encode Prompt, and for methods that read the empty text. Where prompts come from CLIP "
                    "Text Encode it may stay unconnected, unless a method asks for words (FateZero).",
                ),
                io.Sigmas.Input(
                    "sigmas",
                    optional=True,
                    tooltip="Noise levels of inversion and edit, as a scheduler node gives them; set steps to their "
                    "number. Unconnected: the model's own.",
                ),
                io.Model.Input(
                    "low_noise_model",
                    optional=True,
                    tooltip="The second expert of Wan 2.2 14B: connect the high-noise file to model, this one here.",
                ),
                io.Float.Input(
                    "boundary",
                    default=0.875,
                    min=0.0,
                    max=1.0,
                    step=0.005,
                    round=False,
                    optional=True,
                    tooltip="The noise level from which on the high-noise expert works; Wan 2.2: 0.875 for text to "
                    "video, 0.9 for image to video. For two experts alone.",
                ),
            ],
            outputs=[sockets.Model.Output(display_name="model", tooltip="For every node of this edit.")],
        )

    @classmethod
    def execute(cls, model, vae, clip=None, sigmas=None, low_noise_model=None, boundary=0.875):
        from ..backbones.comfy.loading import from_comfy  # the rest of core, which no other node needs

        return io.NodeOutput(from_comfy(model, vae, clip, sigmas, check, low_noise_model, boundary))
