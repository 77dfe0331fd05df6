"""The toy models as diffusers knows them: their sizes, and the folders they are shipped in."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from torch import nn

from . import text, world
from .training import SCHEDULER

UNET = {
    "sample_size": 16,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (32, 64),
    "layers_per_block": 1,
    "attention_head_dim": 8,
    "norm_num_groups": 8,
    "cross_attention_dim": text.WIDTH,
}


def make_vae():
    """64x64x3 -> 16x16x4, 0.4 M parameters."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 48),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=world.SIZE,
        mid_block_add_attention=False,
        scaling_factor=1.0,
    )


def make_image_unet(in_channels: int = 4, fine: bool = True):
    """Attention at 8x8, and with `fine` at 16x16 too, which doubles the cost of a step."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        down_block_types=("CrossAttnDownBlock2D" if fine else "DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D" if fine else "UpBlock2D"),
        use_linear_projection=True,  # as in UNet3DConditionModel, so that the weights carry over
        **{**UNET, "in_channels": in_channels},
    )


def refined(image_unet):
    """An image UNet with attention at 8x8 only, given attention at 16x16 that starts as the identity.

    Raises:
        ValueError: the UNet has it already, or is another model.
    """
    unet = make_image_unet()
    missing, unexpected = unet.load_state_dict(image_unet.state_dict(), strict=False)
    if unexpected or not missing or not all(".attentions." in name for name in missing):
        raise ValueError("this is not the image model of the first run: train image anew before detail")
    for name, module in unet.named_modules():
        if name.endswith("proj_out") and f"{name}.weight" in missing:
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
    return unet


def make_video_unet(image_unet=None):
    """The image UNet inflated: its spatial layers, and temporal layers that start as the identity."""
    from diffusers import UNet3DConditionModel

    unet = UNet3DConditionModel(
        down_block_types=("DownBlock3D", "CrossAttnDownBlock3D"),
        up_block_types=("CrossAttnUpBlock3D", "UpBlock3D"),
        **UNET,
    )
    without_dropout(unet)
    if image_unet is not None:
        missing, unexpected = unet.load_state_dict(image_unet.state_dict(), strict=False)
        if unexpected or not all("temp" in name or "transformer_in" in name for name in missing):
            raise ValueError(
                "the image model does not fit into the video model: it starts from the one of the run `image`, before "
                f"`detail` (missing {missing}, unexpected {unexpected})"
            )
        for name, module in unet.named_modules():
            if name.endswith("proj_out") and ("temp_attentions" in name or "transformer_in" in name):
                nn.init.zeros_(module.weight)
                nn.init.zeros_(module.bias)
    return unet


def without_dropout(unet):
    """diffusers' temporal convolutions drop a tenth; a model this small has nothing to spare."""
    for module in unet.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return unet


def load_text(out: Path):
    from transformers import CLIPTextModel, CLIPTokenizer

    encoder = CLIPTextModel.from_pretrained(out / "text_encoder").eval().requires_grad_(False)
    return CLIPTokenizer.from_pretrained(out / "tokenizer"), encoder


def assemble(
    name: str, unet, out: Path, encoder=None, predicts: str = SCHEDULER["prediction_type"], vae: str = "vae"
) -> None:
    """Writes `out/<name>`: a diffusers folder in fp16 with its own copy of the VAE `out/<vae>`, text encoder and
    tokenizer."""
    import diffusers

    vae = diffusers.AutoencoderKL.from_pretrained(out / vae)
    tokenizer, shared = load_text(out)
    encoder = shared if encoder is None else encoder
    parts = {"vae": vae, "text_encoder": encoder, "tokenizer": tokenizer, "unet": unet}
    parts["scheduler"] = diffusers.DDIMScheduler(**{**SCHEDULER, "prediction_type": predicts})
    if name in ("video", "things"):
        pipeline = diffusers.TextToVideoSDPipeline(**parts)
    else:
        family = "StableDiffusionInstructPix2PixPipeline" if name == "instruct" else "StableDiffusionPipeline"
        unsafe = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        pipeline = getattr(diffusers, family)(**parts, **unsafe)
    shutil.rmtree(out / name, ignore_errors=True)
    pipeline.to(torch.float16).save_pretrained(out / name, safe_serialization=True)
    text.write_portably(out / name, out / "tokenizer")
    for file in (out / name).glob("*/config.json"):  # they remember the folder their weights were read from
        config = json.loads(file.read_text())
        config.pop("_name_or_path", None)
        file.write_text(json.dumps(config, indent=2) + "\n")
