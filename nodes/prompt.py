from __future__ import annotations

from pathlib import Path

from comfy_api.v0_0_2 import io

from ..backbones.files import found
from ..backbones.prompt_file import load_prompt
from . import sockets
from .menus import chosen, roots, stamp_of

FOLDER = "weft_prompts"
NONE = f"(none found: put a .safetensors into models/{FOLDER})"


def prompt_files() -> dict[str, Path]:
    """Names as the menu shows them -> files."""
    return found(roots(FOLDER), lambda file: file if file.suffix == ".safetensors" else None)


class WeftLoadPrompt(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="WeftLoadPrompt",
            display_name="Load Prompt (Weft)",
            category="Weft/encode",
            description="A prompt of embeddings in a file, such as those of MGIE: one for the clip, or one a frame.",
            **sockets.found_by("mgie", "embeddings", "conditioning"),
            inputs=[
                sockets.Model.Input("model", tooltip="The model that will read the prompt."),
                io.Combo.Input(
                    "file",
                    options=list(prompt_files()) or [NONE],
                    tooltip=f"A .safetensors in models/{FOLDER} with one tensor [1 or frames, tokens, width].",
                ),
                io.String.Input("text", default="", tooltip="What the embeddings say, to be shown in messages."),
            ],
            outputs=[io.Conditioning.Output(display_name="conditioning", tooltip="For the nodes that take a prompt.")],
        )

    @classmethod
    def fingerprint_inputs(cls, model, file, text):
        return stamp_of(prompt_files(), file)

    @classmethod
    def execute(cls, model, file, text):
        path = chosen(prompt_files(), file, "prompt")
        return io.NodeOutput(sockets.to_conditioning(load_prompt(model, path, text)))
