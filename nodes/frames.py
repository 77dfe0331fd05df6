from __future__ import annotations

from comfy_api.v0_0_2 import io, ui

from . import sockets


class WeftEncodePrompt(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="WeftEncodePrompt",
            **sockets.found_by("text encode", "clip text", "prompt"),
            display_name="Encode Prompt (Weft)",
            category="Weft/encode",
            description="Turns a text into what the model reads.",
            inputs=[
                sockets.Model.Input("model", tooltip="The model whose text encoder reads the text."),
                io.String.Input(
                    "text",
                    multiline=True,
                    default="",
                    tooltip="Describe the whole picture. For the edit, change only the words of what is to change.",
                ),
            ],
            outputs=[io.Conditioning.Output(display_name="conditioning", tooltip="For the nodes that take a prompt.")],
        )

    @classmethod
    def execute(cls, model, text):
        return io.NodeOutput(sockets.to_conditioning(model.text.embed(text)))


class WeftEncodeFrames(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="WeftEncodeFrames",
            **sockets.found_by("vae encode", "video encode"),
            display_name="Encode Frames (Weft)",
            category="Weft/encode",
            description="Frames to latents, a few frames at a time.",
            inputs=[
                sockets.Model.Input("model", tooltip="The model whose VAE encodes."),
                io.Image.Input("images", tooltip="The clip: at least 2 frames, width and height divisible by 8 (4)."),
            ],
            outputs=[io.Latent.Output(display_name="latent", tooltip="For an inversion, Add Noise or Coupled Edit.")],
        )

    @classmethod
    def execute(cls, model, images):
        left = len(images) - model.codec.takes.fitting(len(images))
        told = f"the last {left} of {len(images)} frames are left out: Prepare Clip can fill the clip up instead"
        return io.NodeOutput({"samples": model.codec.encode(images)}, ui=ui.PreviewText(told) if left else None)


class WeftDecodeFrames(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="WeftDecodeFrames",
            **sockets.found_by("vae decode", "video decode"),
            display_name="Decode Frames (Weft)",
            category="Weft/encode",
            description="Latents to frames, a few frames at a time.",
            inputs=[
                sockets.Model.Input("model", tooltip="The model whose VAE decodes."),
                io.Latent.Input("latent", tooltip="Of an edit, or of Encode Frames."),
            ],
            outputs=[io.Image.Output(display_name="images", tooltip="The clip, for Create Video.")],
        )

    @classmethod
    def execute(cls, model, latent):
        return io.NodeOutput(model.codec.decode(latent["samples"]))
