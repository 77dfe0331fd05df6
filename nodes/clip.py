from __future__ import annotations

from pathlib import Path

import folder_paths
from comfy_api.v0_0_2 import io

from ..backbones.files import found
from ..backbones.memory import ComfyMemory
from ..vision.clip import is_clip, load_clip
from . import sockets
from .menus import chosen, stamp_of

NONE = "(none found: put a CLIP folder into models/clip)"
CONFIG = "config.json"
FOLDERS = "text_encoders"  # ComfyUI's name for models/text_encoders and models/clip
TOYS = Path(__file__).resolve().parents[1] / "toyworld" / "weights"


def clips() -> dict[str, Path]:
    """Names as the menu shows them -> transformers folders of whole CLIPs; text encoders alone are left out."""
    toys = {f"toyworld/{p.parent.name}": p.parent for p in TOYS.glob("clip/config.json")}
    roots = map(Path, folder_paths.get_folder_paths(FOLDERS))
    return toys | found(roots, lambda file: file.parent if file.name == CONFIG and is_clip(file.parent) else None)


class WeftLoadCLIP(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="WeftLoadCLIP",
            **sockets.found_by("clip score"),
            display_name="Load CLIP (Weft)",
            category="Weft/load",
            description="Loads a CLIP with both its towers, to judge pictures by texts.",
            inputs=[
                io.Combo.Input(
                    "model",
                    options=list(clips()) or [NONE],
                    tooltip="A transformers folder of a CLIP in models/clip or models/text_encoders, or toyworld/clip, "
                    "which knows the toy world only.",
                ),
            ],
            outputs=[sockets.Clip.Output(display_name="clip", tooltip="For Edit Candidates.")],
        )

    @classmethod
    def fingerprint_inputs(cls, model):
        return stamp_of(clips(), model)

    @classmethod
    def execute(cls, model):
        return io.NodeOutput(load_clip(chosen(clips(), model), name=model, memory=ComfyMemory()))
