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
            ],
            outputs=[sockets.Model.Output(display_name="model", tooltip="For every node of this edit.")],
        )

    @classmethod
    def execute(cls, model, vae, clip=None, sigmas=None):
        from ..backbones.comfy.loading import from_comfy  # the rest of core, which no other node needs

        return io.NodeOutput(from_comfy(model, vae, clip, sigmas, check))
