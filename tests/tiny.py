"""Diffusers folders of random weights, small enough to run by the hundred on a CPU."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import nn

FRAMES, SIZE = 3, (6, 10)  # latents that are not square, and odd at the next level
SCHEDULER = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "timestep_spacing": "leading",
    "prediction_type": "epsilon",
}
FINEST_TOO = ("CrossAttnDownBlock3D", "CrossAttnDownBlock3D", "DownBlock3D")  # as Zeroscope
COARSE_ONLY = ("DownBlock3D", "CrossAttnDownBlock3D", "DownBlock3D")  # as the toy world's models


PIPELINES = {
    "video": ("TextToVideoSDPipeline", "UNet3DConditionModel"),
    "image": ("StableDiffusionPipeline", "UNet2DConditionModel"),
    "instruct": ("StableDiffusionInstructPix2PixPipeline", "UNet2DConditionModel"),
    "motion": ("AnimateDiffPipeline", "UNetMotionModel"),
}


def make_folder(folder: Path, *, kind: str = "video", blocks: tuple[str, ...] = FINEST_TOO, **scheduler) -> Path:
    """Writes the folder of a video, image or instruct model: attention at the levels `blocks` says (those of an image
    model without the 3), `scheduler` over SCHEDULER."""
    from weft.toyworld.text import make_text_encoder, make_tokenizer

    pipeline, unet = PIPELINES[kind]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tokenizer = make_tokenizer(folder / "tokenizer")
        make_unet(blocks, kind).save_pretrained(folder / "unet")
        make_vae().save_pretrained(folder / "vae")
        make_text_encoder(tokenizer).save_pretrained(folder / "text_encoder")
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps({**SCHEDULER, **scheduler}))
    index = {
        "_class_name": pipeline,
        "unet": ["diffusers", unet],
        "vae": ["diffusers", "AutoencoderKL"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "scheduler": ["diffusers", "DDIMScheduler"],
    }
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def make_unet(blocks: tuple[str, ...], kind: str = "video"):
    import diffusers

    dimensions = {"video": "3D", "motion": "Motion"}.get(kind, "2D")
    blocks = tuple(b.replace("3D", dimensions) for b in blocks)
    heads = (
        {"num_attention_heads": 4, "motion_num_attention_heads": 2} if kind == "motion" else {"attention_head_dim": 4}
    )
    unet = getattr(diffusers, PIPELINES[kind][1])(
        in_channels=8 if kind == "instruct" else 4,
        down_block_types=blocks,
        up_block_types=tuple(b.replace("Down", "Up") for b in reversed(blocks)),
        block_out_channels=(8, 16, 16),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=64,
        **heads,
    )
    spread(unet)
    return unet


def spread(unet) -> None:
    """Lets everything matter that starts as nothing, and attention be uneven."""
    with torch.no_grad():
        for name, weight in unet.named_parameters():
            if not weight.any():  # temporal layers start as the identity: let them matter
                nn.init.normal_(weight, std=0.1 if weight.ndim == 1 else weight[0].numel() ** -0.5)
            if name.endswith(("to_q.weight", "to_k.weight")):
                weight *= 2  # attention as uneven as a trained model's


def make_vae():
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        mid_block_add_attention=False,
        scaling_factor=0.5,
    )


def make_latents(frames: int = FRAMES, size: tuple[int, int] = SIZE, seed: int = 0) -> torch.Tensor:
    """[F, 4, h, w] as they travel on a wire."""
    return 2 * torch.randn(frames, 4, *size, generator=torch.Generator().manual_seed(seed))
