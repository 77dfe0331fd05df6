"""The models that load, by the class of their network: what each is as a `Denoiser`, and what goes with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ...engine.ports import Backbone
from ..lavie.denoiser import LaVie
from .assembly import assemble
from .cogvideox import CogVideoX, assemble_cogvideox
from .unet import DiffusersUNet
from .unet2d import UNet2D
from .unet3d import UNet3D
from .unet_motion import UNetMotion


@dataclass(frozen=True)
class Family:
    """Networks of one class of diffusers: what they are as a `Denoiser`, and what goes with them.

    A folder names classes, and those listed here alone are ever made of it.
    """

    denoiser: type[DiffusersUNet]
    network: str = "unet"  # what the folder calls it
    vae: str = "AutoencoderKL"
    encoder: str = "CLIPTextModel"
    tokenizers: tuple[str, ...] = ("CLIPTokenizer", "CLIPTokenizerFast")
    assemble: Callable[..., Backbone] = assemble

    def parts(self, kind: str) -> dict[str, tuple[str, tuple[str, ...]]]:
        """{folder of a part: (library, classes it may be)}."""
        return {
            self.network: ("diffusers", (kind,)),
            "vae": ("diffusers", (self.vae,)),
            "text_encoder": ("transformers", (self.encoder,)),
            "tokenizer": ("transformers", self.tokenizers),
        }


# A new family of diffusers' networks: its file, and its line here.
FAMILIES = {
    "UNet2DConditionModel": Family(UNet2D),
    "UNet3DConditionModel": Family(UNet3D),
    "UNetMotionModel": Family(UNetMotion),
    "CogVideoXTransformer3DModel": Family(
        CogVideoX, "transformer", "AutoencoderKLCogVideoX", "T5EncoderModel", ("T5Tokenizer", "T5TokenizerFast"),
        assemble_cogvideox,
    ),
}  # fmt: skip
LAVIE = Family(LaVie)  # which no folder of diffusers names: a file beside a folder of Stable Diffusion 1.4
