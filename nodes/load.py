from __future__ import annotations

from pathlib import Path

import folder_paths
from comfy_api.v0_0_2 import io

from ..backbones.diffusers.loading import DTYPES, load_backbone
from ..backbones.files import stamp, walk
from ..backbones.memory import ComfyMemory
from . import sockets
from .host import check

NONE = "(none found: put a diffusers folder into models/diffusers)"
INDEX = "model_index.json"  # what every diffusers folder has
TOYS = Path(__file__).resolve().parents[1] / "toyworld" / "weights"


def model_folders() -> dict[str, Path]:
    """Names as the menu shows them -> folders: the toy world's models and every diffusers folder ComfyUI knows of."""
    toys = {f"toyworld/{p.parent.name}": p.parent for p in sorted(TOYS.glob(f"*/{INDEX}"))}
    roots = [Path(root) for root in folder_paths.get_folder_paths("diffusers")]
    found = [(root, file.parent) for root in roots for file in walk(root) if file.name == INDEX]
    return toys | {str(folder.relative_to(root)): folder for root, folder in reversed(found)}


class WeftLoadModel(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="WeftLoadModel",
            **sockets.found_by("diffusers", "zeroscope", "modelscope", "stable diffusion", "instructpix2pix", "ip2p"),
            display_name="Load Model (Weft)",
            category="Weft/load",
            description="Loads a video, image or instruction model from a diffusers folder.",
            inputs=[
                io.Combo.Input(
                    "model",
                    options=list(model_folders()) or [NONE],
                    tooltip="A diffusers folder in models/diffusers (Zeroscope, ModelScope, Stable Diffusion 1.x/2.x, "
                    "InstructPix2Pix), or a toy model of this pack, which knows the toy world only.",
                ),
                io.Combo.Input(
                    "dtype",
                    options=list(DTYPES),
                    default="auto",
                    tooltip="Precision of the network. auto: float32 on a CPU, half precision on a GPU. Choose "
                    "float32 if an edit becomes NaN.",
                ),
            ],
            outputs=[sockets.Model.Output(display_name="model", tooltip="For every node of this edit.")],
        )

    @classmethod
    def fingerprint_inputs(cls, model, dtype):
        return stamp(model_folders().get(model))

    @classmethod
    def execute(cls, model, dtype):
        folders = model_folders()
        if model not in folders:
            raise ValueError(f"no model '{model}': found {', '.join(folders) or 'none'} (press R to look again)")
        return io.NodeOutput(load_backbone(folders[model], name=model, dtype=dtype, memory=ComfyMemory(), check=check))
