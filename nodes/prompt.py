from __future__ import annotations

from pathlib import Path

import folder_paths
from comfy_api.v0_0_2 import io

from ..backbones.files import stamp, walk
from ..backbones.prompt_file import load_prompt
from . import sockets

FOLDER = "weft_prompts"
NONE = f"(none found: put a .safetensors into models/{FOLDER})"


def prompt_files() -> dict[str, Path]:
    """Names as the menu shows them -> files."""
    root = Path(folder_paths.models_dir) / FOLDER
    return {file.relative_to(root).as_posix(): file for file in walk(root) if file.suffix == ".safetensors"}


class WeftLoadPrompt(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="WeftLoadPrompt",
            display_name="Load Prompt (Weft)",
            category="Weft/prompt",
            description="A prompt of embeddings in a file, such as those of MGIE: one for the clip, or one a frame.",
            inputs=[
                sockets.Model.Input("model", tooltip="The model that will read the prompt."),
                io.Combo.Input(
                    "file",
                    options=list(prompt_files()) or [NONE],
                    tooltip=f"A .safetensors in models/{FOLDER} with one tensor [1 or frames, tokens, width].",
                ),
                io.String.Input("text", default="", tooltip="What the embeddings say, to be shown in messages."),
            ],
            outputs=[io.Conditioning.Output(display_name="conditioning")],
        )

    @classmethod
    def fingerprint_inputs(cls, model, file, text):
        return stamp(prompt_files().get(file))

    @classmethod
    def execute(cls, model, file, text):
        found = prompt_files()
        if file not in found:
            raise ValueError(f"no prompt '{file}': found {', '.join(found) or 'none'} (press R to look again)")
        return io.NodeOutput(sockets.to_conditioning(load_prompt(model, found[file], text)))
