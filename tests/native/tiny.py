"""Small random networks of core's real classes, and the same weights in diffusers' form."""

from __future__ import annotations

from pathlib import Path

import comfy.model_management as management
import comfy.model_patcher
import comfy.supported_models as models
import comfy.utils
import torch
from safetensors.torch import load_file
from torch import nn

from weft.backbones.comfy.loading import from_comfy
from weft.backbones.diffusers.loading import load_backbone
from weft.backbones.memory import PlainMemory
from weft.tests.tiny import make_folder

HEADS, TEXT_WIDTH, CHANNELS = 8, 64, (32, 32, 64)
UNET = {
    "image_size": 8,
    "in_channels": 4,
    "model_channels": 32,
    "out_channels": 4,
    "num_res_blocks": [1, 1, 1],
    "dropout": 0,
    "channel_mult": (1, 1, 2),
    "num_heads": HEADS,
    "use_spatial_transformer": True,
    "transformer_depth": [1, 1, 0],
    "transformer_depth_output": [1, 1, 1, 1, 0, 0],
    "transformer_depth_middle": 1,
    "context_dim": TEXT_WIDTH,
    "use_linear_in_transformer": False,
    "legacy": False,
    "use_temporal_attention": False,
    "adm_in_channels": None,
}


def make_sd_folder(folder: Path, kind: str = "image") -> Path:
    """A diffusers folder of a UNet with 32 channels at least, as core's norms want them."""
    import diffusers

    make_folder(folder, kind=kind)
    torch.manual_seed(0)
    unet = diffusers.UNet2DConditionModel(
        in_channels=8 if kind == "instruct" else 4,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=CHANNELS,
        layers_per_block=1,
        norm_num_groups=32,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=HEADS,
    )
    with torch.no_grad():
        for name, weight in unet.named_parameters():
            if name.endswith(("to_q.weight", "to_k.weight")):
                weight *= 2  # attention as uneven as a trained model's
    unet.save_pretrained(folder / "unet")
    widths = (8, 8, 8, 8)
    vae = diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=widths,
        norm_num_groups=4,
        scaling_factor=0.18215,
    )
    vae.save_pretrained(folder / "vae")
    return folder


class StandInVAE:
    """What a backbone asks a VAE of core's for, where a test brings latents of its own."""

    latent_channels = 4
    upscale_ratio = 8

    def __init__(self, latent_channels: int = 4, upscale_ratio=8):
        self.latent_channels, self.upscale_ratio = latent_channels, upscale_ratio


def sd_patcher(folder: Path):
    """Core's ModelPatcher around the UNet of a diffusers folder, its weights made as core's loader makes them."""
    weights = load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")
    instruct = weights["conv_in.weight"].shape[1] == 8
    config = {**UNET, "in_channels": 8 if instruct else 4}
    names = comfy.utils.unet_to_diffusers(config)
    kind = (models.SD15_instructpix2pix if instruct else models.SD15)(config)
    kind.set_inference_dtype(torch.float32, None)
    with torch.inference_mode():
        model = kind.get_model({}, "", device="cpu")
        state = {names[name]: weight for name, weight in weights.items()}
        missing, left = model.diffusion_model.load_state_dict(state, strict=False)
        assert not missing, missing
        assert not left, left
    return as_patcher(model)


def as_patcher(model: nn.Module):
    return comfy.model_patcher.ModelPatcher(model, management.get_torch_device(), management.unet_offload_device())


def twins(folder: Path):
    """(the folder through diffusers, the same weights through core), both in float64, so that what is compared is what
    they compute and not how they round."""
    ours, core = load_backbone(folder, dtype="float32", memory=PlainMemory("cpu")), sd_patcher(folder)
    nn.Module.to(ours.denoiser.network, torch.float64)
    with torch.inference_mode():
        core.model.diffusion_model.to(torch.float64).dtype = torch.float64
    return ours, from_comfy(core, StandInVAE())
