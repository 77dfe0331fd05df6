from __future__ import annotations

from pathlib import Path

from comfy_api.v0_0_2 import io

from ..backbones.diffusers.motion import load_animatediff
from ..backbones.files import found, stamp
from ..backbones.known_models import missing
from ..backbones.memory import ComfyMemory
from . import sockets
from .host import check, clip_tokenizer
from .load import NONE, TOYS, complaint, dtype_input, models
from .menus import roots, stamp_of

MOTION, LORA = "animatediff_models", "animatediff_motion_lora"  # folders that AnimateDiff-Evolved uses as well
TOY = TOYS / "motion"
WEIGHTS = (".safetensors", ".ckpt", ".pt", ".pth")
NO_MOTION, NO_LORA = f"(none found: put a motion module into models/{MOTION})", "none"


def motion_files(kind: str) -> dict[str, Path]:
    """Names as the menu shows them -> files, and folders of diffusers, of one kind."""

    def choose(file: Path) -> Path | None:
        if file.suffix not in WEIGHTS:
            return None
        return file.parent if file.name.startswith("diffusion_pytorch_model") else file

    return found(roots(kind), choose)


def motion_modules() -> dict[str, Path]:
    """Names as the menu shows them -> the toy world's motion module, and those in ComfyUI's folder."""
    toys = {f"toyworld/{TOY.name}": TOY} if (TOY / "config.json").is_file() else {}
    return toys | motion_files(MOTION)


class WeftLoadAnimateDiff(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="WeftLoadAnimateDiff",
            display_name="Load AnimateDiff (Weft)",
            category="Weft/load",
            description="Makes a video model of a Stable Diffusion 1.x and a motion module.",
            **sockets.found_by("motion module", "motion lora"),
            inputs=[
                io.Combo.Input(
                    "model",
                    options=list(models()) or [NONE],
                    tooltip="The image model: a diffusers folder or a checkpoint of Stable Diffusion 1.x.",
                ),
                io.Combo.Input(
                    "motion_module",
                    options=list(motion_modules()) or [NO_MOTION],
                    tooltip=f"AnimateDiff v1, v2 or v3 in models/{MOTION}: a file, or a diffusers folder. "
                    "toyworld/motion is for toyworld/epsilon.",
                ),
                dtype_input(),
                io.Combo.Input(
                    "motion_lora",
                    options=[NO_LORA, *motion_files(LORA)],
                    default=NO_LORA,
                    optional=True,
                    tooltip=f"A camera move in models/{LORA}, made for v2. none: the motion module as it is.",
                ),
                io.Float.Input(
                    "lora_strength",
                    default=1.0,
                    min=-10.0,
                    max=10.0,
                    step=0.05,
                    optional=True,
                    tooltip="How strongly the camera moves; 0 is not at all.",
                ),
            ],
            outputs=[sockets.Model.Output(display_name="model", tooltip="For every node of this edit.")],
        )

    @classmethod
    def fingerprint_inputs(cls, model, motion_module, dtype, motion_lora=NO_LORA, lora_strength=1.0):
        lora = motion_files(LORA).get(motion_lora)
        return stamp_of(models(), model), stamp_of(motion_modules(), motion_module), stamp(lora)

    @classmethod
    def validate_inputs(cls, model=None, motion_module=None):
        """In place of ComfyUI's own check, which would only say that a name is not in the list."""
        found = motion_modules()
        if motion_module is not None and motion_module not in found:
            return missing(motion_module, found)
        return complaint(model)

    @classmethod
    def execute(cls, model, motion_module, dtype, motion_lora=NO_LORA, lora_strength=1.0):
        image, motion = _chosen(model, models()), _chosen(motion_module, motion_modules())
        loras = [] if motion_lora == NO_LORA else [(_chosen(motion_lora, motion_files(LORA)), lora_strength)]
        how = {"dtype": dtype, "memory": ComfyMemory(), "check": check, "tokenizer": clip_tokenizer()}
        return io.NodeOutput(load_animatediff(image, motion, loras=loras, name=f"{model} + {motion_module}", **how))


def _chosen(name: str, found: dict[str, Path]) -> Path:
    if name not in found:
        raise ValueError(missing(name, found))
    return found[name]
