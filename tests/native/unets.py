"""UNets with the same weights in core's form and in diffusers'."""

from __future__ import annotations

from pathlib import Path

import comfy.supported_models as models
import comfy.utils
import torch
from safetensors.torch import load_file
from torch import nn

from weft.backbones.comfy.loading import from_comfy
from weft.backbones.diffusers.loading import load_backbone
from weft.backbones.memory import PlainMemory
from weft.tests.native.tiny import CHANNELS, HEADS, SD2, SDXL, TEXT_WIDTH, UNET, V_SIGN, StandInVAE, as_patcher
from weft.tests.tiny import make_folder

OF_ONE = {  # in diffusers' words
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "block_out_channels": CHANNELS,
    "norm_num_groups": 32,
    "cross_attention_dim": TEXT_WIDTH,
    "attention_head_dim": HEADS,
}
OF_TWO = {
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "block_out_channels": (64, 128),
    "norm_num_groups": 32,
    "cross_attention_dim": TEXT_WIDTH,
    "attention_head_dim": (1, 2),  # which are numbers of heads
    "use_linear_projection": True,
}
OF_XL = {
    **OF_TWO,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2),
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}


def make_sd_folder(folder: Path, kind: str = "image") -> Path:
    """A diffusers folder of a UNet with 32 channels at least, as core's norms want them; "two" is of SD 2, and predicts
    v."""
    import diffusers

    two = kind == "two"
    make_folder(folder, kind="image" if two else kind, **({"prediction_type": "v_prediction"} if two else {}))
    torch.manual_seed(0)
    unet = diffusers.UNet2DConditionModel(
        in_channels=8 if kind == "instruct" else 4, **(OF_TWO if two else OF_ONE), layers_per_block=1
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


def sd_patcher(folder: Path):
    """Core's ModelPatcher around the UNet of a diffusers folder, its weights made as core's loader makes them."""
    weights = load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")
    if weights["conv_in.weight"].shape[1] == 8:
        return unet_patcher(models.SD15_instructpix2pix, {**UNET, "in_channels": 8}, weights)
    if weights["conv_in.weight"].shape[0] == 64:
        return unet_patcher(models.SD20, SD2, weights, {V_SIGN: torch.tensor([-1.0, 1.0])})
    return unet_patcher(models.SD15, UNET, weights)


def unet_patcher(kind, config: dict, weights: dict[str, torch.Tensor], told: dict | None = None):
    """Core's UNet of a kind with diffusers' weights; `told` is what core reads the kind of sampling from."""
    names = comfy.utils.unet_to_diffusers(config)
    kind = kind(dict(config))
    kind.set_inference_dtype(torch.float32, None)
    with torch.inference_mode():
        model = kind.get_model(told or {}, "", device="cpu")
        state = {names[name]: weight for name, weight in weights.items()}
        missing, left = model.diffusion_model.load_state_dict(state, strict=False)
        assert not missing, missing
        assert not left, left
    return as_patcher(model)


def twins(folder: Path):
    """(the folder through diffusers, the same weights through core), both in float64, so that what is compared is what
    they compute and not how they round."""
    ours, core = load_backbone(folder, dtype="float32", memory=PlainMemory("cpu")), sd_patcher(folder)
    nn.Module.to(ours.denoiser.network, torch.float64)
    return ours, from_comfy(in_float64(core), StandInVAE())


def in_float64(patcher):
    with torch.inference_mode():
        patcher.model.diffusion_model.to(torch.float64).dtype = torch.float64
    return patcher


def xl_twins():
    """(diffusers' UNet of Stable Diffusion XL's kind, a backbone of core's with the same weights), in float64."""
    import diffusers

    torch.manual_seed(0)
    network = diffusers.UNet2DConditionModel(in_channels=4, **OF_XL, layers_per_block=1)
    core = in_float64(unet_patcher(models.SDXL, SDXL, network.state_dict()))
    return network.double().eval(), from_comfy(core, StandInVAE())
