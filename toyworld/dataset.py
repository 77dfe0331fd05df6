"""The clips that the diffusion models are trained on, as latents of the VAE, and their captions."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from . import scenes, world

CLIPS, CLIPS_SEED = 3000, 1234  # the training set; every other seed is held out
SCENE_COUNTS = (0, 1, 1, 2, 2, 2)  # sprites of a scene, each as often as it is written here
PREFIXES = ("a video of ", "a photo of ", "make it ", "turn it into ")


def training_set(out: Path, runs: Path, clips: int = CLIPS) -> tuple[Tensor, Tensor, list[str]]:
    """(latents [n, F, 4, h, w], sprite cells [n, F, h, w] bool, captions), cached in `runs`."""
    generator = torch.Generator().manual_seed(CLIPS_SEED)
    batches = [world.draw(100, generator) for _ in range(math.ceil(clips / 100))]
    cells = torch.cat([_cells(world.sprite_alpha(b)) for b in batches])
    sentences = [s for b in batches for s in world.captions(b)]
    videos = (world.render(b)[0] for b in batches)
    return _latents(f"latents-{clips}", out / "vae", runs, videos), cells, sentences


def scene_set(vae: Path, runs: Path, clips: int = CLIPS, device: str = "cpu") -> tuple[Tensor, Tensor, list[str]]:
    """The same of scenes with none, one or two sprites, as latents of the VAE in a folder."""
    generator = torch.Generator().manual_seed(CLIPS_SEED)
    batches = [scenes.draw(100, generator, SCENE_COUNTS) for _ in range(math.ceil(clips / 100))]
    cells = torch.cat([_cells(scenes.visible(b).amax(1)) for b in batches])
    sentences = [s for b in batches for s in scenes.captions(b)]
    videos = (scenes.render(b)[0] for b in batches)
    return _latents(f"scene-latents-{clips}", vae, runs, videos, device), cells, sentences


def _cells(alpha: Tensor) -> Tensor:
    return F.max_pool2d(alpha, 4) > 0.3


def _latents(name: str, folder: Path, runs: Path, videos: Iterable[Tensor], device: str = "cpu") -> Tensor:
    from diffusers import AutoencoderKL

    vae_id = hashlib.sha256((folder / "diffusion_pytorch_model.safetensors").read_bytes()).hexdigest()[:8]
    cache = runs / f"{name}-{vae_id}.pt"
    if not cache.exists():
        runs.mkdir(parents=True, exist_ok=True)
        vae = AutoencoderKL.from_pretrained(folder, torch_dtype=torch.float32).eval().to(device)
        partial = cache.with_suffix(f".{os.getpid()}")
        torch.save(torch.cat([encode(vae, video.to(device)).half().cpu() for video in videos]), partial)
        partial.replace(cache)  # two runs may make it at the same time
    return torch.load(cache, weights_only=True)


@torch.no_grad()
def encode(vae, video: Tensor, batch: int = 64) -> Tensor:
    """[n, F, 3, H, W] in 0..1 -> latents [n, F, 4, h, w]."""
    x = video.flatten(0, 1) * 2 - 1
    return torch.cat([vae.encode(part).latent_dist.mode() for part in x.split(batch)]).unflatten(0, video.shape[:2])


def squares_and_circles(sentences: list[str]) -> Tensor:
    """Which clips show the two shapes that differ by less than a latent cell."""
    return torch.tensor([k for k, s in enumerate(sentences) if "square" in s or "circle" in s])
