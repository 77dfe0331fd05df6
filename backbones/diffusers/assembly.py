"""From the parts of a model to a `Backbone`: that they fit each other, and in which precision each runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from ...engine.ports import Backbone
from ..memory import Memory
from .codec import FrameCodec
from .parts import make_schedule
from .text import ClipText
from .unet import DiffusersUNet

DType = Literal["auto", "float32", "float16", "bfloat16"]
DTYPES = ("auto", "float32", "float16", "bfloat16")
# Networks that are told more than the noise level and a text, by what their config says.
TOLD_MORE = {
    "addition_embed_type": "it is an SDXL-like model",
    "time_cond_proj_dim": "it is distilled (LCM) and told the guidance scale by an embedding of its own",
    "class_embed_type": "it is told a class, as upscalers and unCLIP models are",
    "num_class_embeds": "it is told a class, as upscalers are",
}


@dataclass(frozen=True, eq=False)
class Parts:
    """What a model is made of, all weights frozen and in main memory."""

    network: nn.Module  # in the dtype it runs in
    vae: nn.Module  # float32
    encoder: nn.Module
    tokenizer: Any
    scheduler: dict  # a `scheduler_config.json`


def dtype_of(dtype: DType, memory: Memory) -> torch.dtype:
    """The dtype of the network and the text encoder. ValueError for a name that is none."""
    if dtype not in DTYPES:
        raise ValueError(f"no dtype '{dtype}': want one of {', '.join(DTYPES)}")
    return memory.default_dtype() if dtype == "auto" else getattr(torch, dtype)


def assemble(
    family: type[DiffusersUNet], name: str, parts: Parts, dtype: torch.dtype, memory: Memory, check: Callable[[], None]
) -> Backbone:
    """A `Backbone` of parts with a 2-D VAE and a CLIP-like text encoder.

    Raises:
        ValueError: they do not fit, or the network wants inputs that are not given.
    """
    vae = parts.vae
    require_known(parts.network, vae, name)
    fit_text(parts.network, parts.encoder, parts.tokenizer, name)
    make_schedule(parts.scheduler, 1)  # refused now rather than at the first edit
    codec = FrameCodec(name, vae, memory, check, family.fewest_frames, family.most_frames(parts.network))
    # Only now: the fingerprint is of its weights as they are in the file.
    nn.Module.to(vae, vae_dtype(vae, dtype, memory))
    denoiser = family(name, parts.network, codec.layout, parts.scheduler, memory, vae.config.scaling_factor)
    return Backbone(name, denoiser, codec, ClipText(parts.encoder.to(dtype=dtype), parts.tokenizer, memory))


def vae_dtype(vae, dtype: torch.dtype, memory: Memory) -> torch.dtype:
    """bfloat16 has the range of float32, so every VAE bears it; in float16 frames turn black but for the VAEs whose
    config says that they need not be upcast. The CPU has nothing to gain."""
    if dtype == torch.float32 or memory.device.type == "cpu":
        return torch.float32
    if memory.has_bfloat16():
        return torch.bfloat16
    return torch.float16 if getattr(vae.config, "force_upcast", True) is False else torch.float32


def require_known(network, vae, name: str) -> None:
    """Refuses relatives of Stable Diffusion whose networks want inputs that are not given."""
    for key, what in TOLD_MORE.items():
        if getattr(network.config, key, None) is not None:
            raise ValueError(f"the network of '{name}' is not supported, as {what}: use Stable Diffusion 1.x or 2.x")
    if "image" in (getattr(network.config, "encoder_hid_dim_type", None) or ""):
        raise ValueError(f"the network of '{name}' is not supported, as it is told a picture in place of a text")
    takes, gives, latent = network.config.in_channels, network.config.out_channels, vae.config.latent_channels
    if takes not in (latent, 2 * latent):
        raise ValueError(
            f"the network of '{name}' takes {takes} channels and the latents have {latent}: inpainting and depth "
            "models are not supported, use a text-to-image, a text-to-video or an InstructPix2Pix model"
        )
    if gives != latent or (vae.config.in_channels, vae.config.out_channels) != (3, 3):
        raise ValueError(
            f"the parts of '{name}' do not fit: the network gives {gives} channels, the latents have {latent}, and the "
            f"VAE turns {vae.config.in_channels} colors into {vae.config.out_channels}"
        )


def fit_text(network, encoder, tokenizer, name: str) -> None:
    """Lets the tokenizer give no more tokens than the encoder reads; refuses texts that the network cannot take."""
    reads, gives, wants = encoder.config.vocab_size, encoder.config.hidden_size, network.config.cross_attention_dim
    if len(tokenizer) > reads:
        raise ValueError(
            f"the tokenizer of '{name}' knows {len(tokenizer)} tokens and its text encoder {reads}: is one of them of "
            "another model?"
        )
    if wants != gives:
        raise ValueError(f"the network of '{name}' takes texts {wants} wide and its text encoder gives {gives}")
    tokenizer.model_max_length = min(tokenizer.model_max_length, encoder.config.max_position_embeddings)
