"""The toy world's LTX-Video: a small video transformer and a causal video VAE of the real classes, and their one file.

The file is what ComfyUI's *Load Checkpoint* reads as MODEL and VAE: the weights under core's names, the sizes in its
metadata. Core fixes 128 latent channels and a base of 128 in the VAE; the rest is small here. A latent cell is 8x8
pixels of one frame. Text is any [n, tokens, 64] of a CLIP of the toy world; the file holds none.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor, nn

from . import text, world

FILE = "toy_ltxv.safetensors"
FRAMES = 9  # core's VAE wants 8k + 1
RATE = 25  # frames a second: what core assumes where no conditioning names another
LATENT = 128  # channels
PATCH = 8  # pixels, height and width of a latent cell
HEADS, HEAD, LAYERS = 6, 32, 4

TRANSFORMER = {  # as core's `LTXVModel` is called
    "in_channels": LATENT,
    "num_attention_heads": HEADS,
    "attention_head_dim": HEAD,
    "cross_attention_dim": HEADS * HEAD,
    "caption_channels": text.WIDTH,
    "num_layers": LAYERS,
    "vae_scale_factors": [1, PATCH, PATCH],
    "causal_temporal_positioning": False,
}
VAE = {  # as core's `VideoVAE` is called
    "dims": 3,
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": LATENT,
    "encoder_blocks": [],
    "decoder_blocks": [["res_x", 1]],
    "norm_layer": "pixel_norm",
    "patch_size": PATCH,
    "latent_log_var": "uniform",
    "causal_decoder": False,
    "spatial_padding_mode": "zeros",
}
MODEL_PREFIX, VAE_PREFIX = "model.diffusion_model.", "vae."
# diffusers' names of a part, and core's
MODEL_NAMES = (
    ("proj_in.", "patchify_proj."),
    ("time_embed.", "adaln_single."),
    (".norm_q.", ".q_norm."),
    (".norm_k.", ".k_norm."),
)
VAE_NAMES = (
    ("decoder.mid_block.resnets.", "decoder.up_blocks.0.res_blocks."),
    ("latents_mean", "per_channel_statistics.mean-of-means"),
    ("latents_std", "per_channel_statistics.std-of-means"),
)
# Core has places for these too, and reads them nowhere; without them it says at every load that they are missing.
UNREAD = ("mean-of-stds", "mean-of-stds_over_std-of-means", "channel")


def make_vae():
    """`AutoencoderKLLTXVideo`: [n, 3, F, 64, 64] -> [n, 128, F, 8, 8], 3.1 M parameters. A frame's latent depends on it
    and on those before.

    Raises:
        ValueError: diffusers is older than LTX-Video.
    """
    return _diffusers("AutoencoderKLLTXVideo")(
        latent_channels=LATENT,
        block_out_channels=(128,),
        decoder_block_out_channels=(128,),
        down_block_types=("LTXVideoDownBlock3D",),
        spatio_temporal_scaling=(False,),
        decoder_spatio_temporal_scaling=(False,),
        layers_per_block=(0, 0),
        decoder_layers_per_block=(0, 1),
        decoder_inject_noise=(False, False),
        upsample_residual=(False,),
        upsample_factor=(1,),
        patch_size=PATCH,
        patch_size_t=1,
        encoder_causal=True,
        decoder_causal=VAE["causal_decoder"],
    )


def make_transformer():
    """`LTXVideoTransformer3DModel` of 2.8 M parameters, whose first prediction is 0.

    Raises:
        ValueError: diffusers is older than LTX-Video.
    """
    transformer = _diffusers("LTXVideoTransformer3DModel")(
        in_channels=LATENT,
        out_channels=LATENT,
        num_attention_heads=HEADS,
        attention_head_dim=HEAD,
        cross_attention_dim=HEADS * HEAD,
        caption_channels=text.WIDTH,
        num_layers=LAYERS,
    )
    nn.init.zeros_(transformer.proj_out.weight)
    nn.init.zeros_(transformer.proj_out.bias)
    return transformer


def _diffusers(name: str):
    import diffusers

    try:
        return getattr(diffusers, name)
    except AttributeError:
        raise ValueError(
            f"diffusers {diffusers.__version__} has no {name}: install a newer one, the flow model is tested with 0.42"
        ) from None


def encode(vae, video: Tensor) -> Tensor:
    """[n, F, 3, H, W] in 0..1 -> latents [n, 128, F, H/8, W/8], the mean of the posterior, normalised as core does."""
    mean = vae.encode(video.transpose(1, 2) * 2 - 1).latent_dist.mode()
    return (mean - _channels(vae.latents_mean)) / _channels(vae.latents_std)


def decode(vae, latents: Tensor) -> Tensor:
    """The way back: [n, 128, F, h, w] -> [n, F, 3, 8h, 8w] in 0..1."""
    pictures = vae.decode(latents * _channels(vae.latents_std) + _channels(vae.latents_mean)).sample
    return (pictures.transpose(1, 2) / 2 + 0.5).clamp(0, 1)


def _channels(statistics: Tensor) -> Tensor:
    return statistics[None, :, None, None, None]


def coordinates(frames: int, height: int, width: int, device="cpu") -> Tensor:
    """[1, 3, frames * height * width]: seconds, and pixels down and across, where each latent cell begins."""
    axes = [torch.arange(n, device=device, dtype=torch.float32) for n in (frames, height, width)]
    t, y, x = torch.meshgrid(axes[0] / RATE, axes[1] * PATCH, axes[2] * PATCH, indexing="ij")
    return torch.stack([t, y, x]).flatten(1)[None]


def velocity(transformer, x: Tensor, t: Tensor, prompts: Tensor, where: Tensor) -> Tensor:
    """What the transformer predicts: noise - clean.

    Args:
        x: [n, 128, F, h, w], (1 - t) clean + t noise.
        t: [n] in 0..1.
        prompts: [n, tokens, 64]; every token counts, those that pad as well.
        where: `coordinates` of x.
    """
    tokens = x.flatten(2).transpose(1, 2)
    predicted = transformer(tokens, prompts, t * 1000, None, video_coords=where, return_dict=False)[0]
    return predicted.transpose(1, 2).unflatten(2, x.shape[2:])


# ---- the file -------------------------------------------------------------------------------------------------------


def write(file: Path, vae, transformer=None) -> None:
    """Writes the checkpoint in fp16; without a transformer, a file for core's *Load VAE*."""
    from safetensors.torch import save_file

    tensors = _renamed(vae.state_dict(), VAE_NAMES, VAE_PREFIX)
    tensors |= {f"{VAE_PREFIX}per_channel_statistics.{name}": torch.zeros(LATENT) for name in UNREAD}
    config = {"vae": VAE}
    if transformer is not None:
        tensors |= _renamed(transformer.state_dict(), MODEL_NAMES, MODEL_PREFIX)
        config["transformer"] = TRANSFORMER
    file.parent.mkdir(parents=True, exist_ok=True)
    half = {name: tensor.half().contiguous() for name, tensor in tensors.items()}
    save_file(half, file, metadata={"config": json.dumps(config), "format": "pt"})


def load_vae(file: Path):
    """The VAE of a checkpoint, in float32, ready for use.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds no VAE of this module's sizes.
    """
    return _filled(make_vae(), _read(file, "flow_vae"), VAE_NAMES, VAE_PREFIX, file, "flow_vae")


def load_transformer(file: Path):
    """The transformer of a checkpoint, likewise."""
    return _filled(make_transformer(), _read(file, "flow"), MODEL_NAMES, MODEL_PREFIX, file, "flow")


def _read(file: Path, run: str) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    if not file.exists():
        raise FileNotFoundError(f"no {file}: train it with python -m weft.toyworld.train {run}")
    return load_file(file)


def _renamed(tensors: dict[str, Tensor], names: tuple[tuple[str, str], ...], prefix: str) -> dict[str, Tensor]:
    """diffusers' tensors under core's names."""
    renamed = {}
    for name, tensor in tensors.items():
        for ours, core in names:
            name = name.replace(ours, core)
        renamed[prefix + name] = tensor
    return renamed


def _filled(module, tensors: dict[str, Tensor], names, prefix: str, file: Path, run: str):
    wanted = module.state_dict()
    held = {core: ours for ours, core in zip(wanted, _renamed(wanted, names, prefix))}
    found = {ours: tensors[core].float() for core, ours in held.items() if core in tensors}
    if [*found] != [*wanted] or any(found[name].shape != wanted[name].shape for name in wanted):
        raise ValueError(
            f"{file} holds no such model of these sizes: train it with python -m weft.toyworld.train {run}"
        )
    module.load_state_dict(found)
    return module.eval().requires_grad_(False)


# ---- what is drawn --------------------------------------------------------------------------------------------------


def cells(alpha: Tensor) -> Tensor:
    """[n, F, H, W] coverage -> [n, 1, F, h, w] bool: the cells of which the sprite covers some pixel."""
    return nn.functional.max_pool2d(alpha, PATCH)[:, None] > 0.3


def drawn(n: int, seed: int, device: str, batch: int = 500):
    """n clips of 9 frames, rendered on `device` a batch at a time: yields (clips, video, alpha)."""
    generator = torch.Generator().manual_seed(seed)
    for first in range(0, n, batch):
        clips = world.draw(min(batch, n - first), generator, FRAMES).to(device)
        yield (clips, *world.render(clips))
