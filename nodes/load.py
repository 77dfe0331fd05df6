from __future__ import annotations

from pathlib import Path

import folder_paths
from comfy_api.v0_0_2 import io

from ..backbones.diffusers.loading import DTYPES, load_backbone
from ..backbones.files import found
from ..backbones.known_models import missing
from ..backbones.lavie.denoiser import FILES as LAVIE
from ..backbones.memory import ComfyMemory
from . import sockets
from .host import check, clip_tokenizer
from .menus import stamp_of

NONE = "(none found: put a diffusers folder into models/diffusers)"
INDEX = "model_index.json"  # what every diffusers folder has
CHECKPOINT = ".safetensors"
TOYS = Path(__file__).resolve().parents[1] / "toyworld" / "weights"


def models() -> dict[str, Path]:
    """Names as the menu shows them -> folders and files: the toy world's models, every diffusers folder that ComfyUI
    knows of, and its checkpoints."""
    toys = {f"toyworld/{p.parent.name}": p.parent for p in sorted(TOYS.glob(f"*/{INDEX}"))}
    folders = found(
        map(Path, folder_paths.get_folder_paths("diffusers")),
        lambda file: file.parent if file.name in (INDEX, *LAVIE) else None,
    )
    checkpoints = found(
        map(Path, folder_paths.get_folder_paths("checkpoints")),
        lambda file: file if file.suffix == CHECKPOINT else None,
    )
    return toys | folders | {f"checkpoints/{name}": file for name, file in checkpoints.items()}


def complaint(model: str | None) -> bool | str:
    """True where there is such a model, or where its name is not known yet; else what to get."""
    found = models()
    return True if model is None or model in found else missing(model, found)


def dtype_input() -> io.Input:
    return io.Combo.Input(
        "dtype",
        options=list(DTYPES),
        default="auto",
        tooltip="Precision of the network. auto: float32 on a CPU, half precision on a GPU. Choose float32 if an edit "
        "becomes NaN.",
    )


class WeftLoadModel(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="WeftLoadModel",
            **sockets.found_by("diffusers", "zeroscope", "modelscope", "stable diffusion", "instructpix2pix", "ip2p"),
            display_name="Load Model (Weft)",
            category="Weft/load",
            description="Loads a video, image or instruction model from a diffusers folder or a checkpoint.",
            inputs=[
                io.Combo.Input(
                    "model",
                    options=list(models()) or [NONE],
                    tooltip="A folder in models/diffusers (LaVie, Zeroscope, ModelScope, CogVideoX, Stable Diffusion "
                    "1.x/2.x, InstructPix2Pix), a .safetensors of Stable Diffusion 1.x/2.x or InstructPix2Pix in "
                    "models/checkpoints, or a toy model of this pack, which knows the toy world only.",
                ),
                dtype_input(),
            ],
            outputs=[sockets.Model.Output(display_name="model", tooltip="For every node of this edit.")],
        )

    @classmethod
    def fingerprint_inputs(cls, model, dtype):
        return stamp_of(models(), model)

    @classmethod
    def validate_inputs(cls, model=None):
        """In place of ComfyUI's own check, which would only say that the name is not in the list."""
        return complaint(model)

    @classmethod
    def execute(cls, model, dtype):
        found = models()
        if model not in found:
            raise ValueError(missing(model, found))
        how = {"name": model, "dtype": dtype, "memory": ComfyMemory(), "check": check}
        return io.NodeOutput(load_backbone(found[model], **how, tokenizer=clip_tokenizer()))
