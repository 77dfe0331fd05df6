"""Networks of real sizes with random weights: what a step costs does not depend on what was learned."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ...backbones.diffusers.codec import FrameCodec
from ...backbones.diffusers.unet import DiffusersUNet
from ...backbones.diffusers.unet2d import UNet2D
from ...backbones.diffusers.unet3d import UNet3D
from ...backbones.memory import PlainMemory
from ...backbones.random_network import random_network
from ...engine.ports import Backbone
from ...engine.words import Layout, Prompt

SCHEDULER = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
    "timestep_spacing": "leading",
    "prediction_type": "v_prediction",  # finite whatever a network of random weights says
}
WORDS = ["a", "red", "square", "on", "a", "gray", "plain", "background"]


@dataclass(frozen=True)
class Size:
    """A clip, and how wide the networks are."""

    frames: int
    image: tuple[int, int]  # latent cells, h and w
    video: tuple[int, int]
    widths: tuple[int, ...]
    vae_widths: tuple[int, ...]
    text: int  # width of its embeddings
    groups: int  # of normalisation
    long: int  # frames of a long clip
    heads: int = 8  # of the image model's attention, on every level
    head: int = 8  # channels of one, in the video model


FULL = Size(16, (64, 64), (40, 64), (320, 640, 1280, 1280), (128, 256, 512, 512), 768, 32, 1440, head=64)
TINY = Size(4, (8, 8), (4, 8), (8, 16, 16, 16), (8, 8, 8, 8), 16, 4, 24)


class NoText:
    """Prompts are drawn, not read."""

    fingerprint = "drawn"

    def __init__(self, width: int):
        self.width = width

    def embed(self, text: str) -> Prompt:
        generator = torch.Generator().manual_seed(len(text))
        tokens = ["", *(word + " " for word in text.split())]
        tokens += [""] * (77 - len(tokens))
        embedding = torch.randn(1, 77, self.width, generator=generator)
        return Prompt({"embedding": embedding}, text, self.fingerprint, tuple(tokens))


def image_model(size: Size, device: torch.device, dtype: torch.dtype, instruct: bool = False) -> Backbone:
    """Stable Diffusion 1.5, or InstructPix2Pix, with its VAE."""
    network = {"in_channels": 8 if instruct else 4, "attention_head_dim": size.heads}
    vae = {
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "block_out_channels": size.vae_widths,
        "layers_per_block": 2,
        "latent_channels": 4,
    }
    name = "random InstructPix2Pix" if instruct else "random SD 1.5"
    return _backbone(name, UNet2D, "UNet2DConditionModel", network, vae, size, device, dtype)


def video_model(size: Size, device: torch.device, dtype: torch.dtype) -> Backbone:
    """Zeroscope; its attention at the finest level too. Its clips are latents from the start, so its VAE is a stub."""
    network = {"attention_head_dim": size.head}
    vae = {"block_out_channels": (size.groups,)}
    return _backbone("random Zeroscope", UNet3D, "UNet3DConditionModel", network, vae, size, device, dtype)


def _backbone(
    name: str, family: type[DiffusersUNet], kind: str, network: dict, vae: dict, size: Size, device, dtype
) -> Backbone:
    sizes = {"block_out_channels": size.widths, "cross_attention_dim": size.text, "norm_num_groups": size.groups}
    network = random_network(kind, str(device), dtype, **sizes, **network)
    vae = random_network("AutoencoderKL", str(device), dtype, norm_num_groups=size.groups, **vae)
    memory = PlainMemory(device)
    layout = Layout(2 ** (len(vae.config.block_out_channels) - 1))
    denoiser = family(name, network, layout, SCHEDULER, memory)
    return Backbone(name, denoiser, FrameCodec(name, vae, memory), NoText(size.text))
