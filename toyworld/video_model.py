"""Trains the video model: the runs `video`, `words`, `shapes` and `things`, on whole clips."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from . import text
from .dataset import CLIPS, PREFIXES, scene_set, squares_and_circles, training_set
from .losses import diffusion_loss
from .models import assemble, load_text, make_video_unet, without_dropout
from .training import Loss, Recipe, add_noise, alpha_bars, stratified_timesteps, train
from .vae import CRISP

BATCH = {"video": 8, "words": 8, "shapes": 8, "things": 32}


def train_video(recipe: Recipe, runs: Path, out: Path, clips: int = CLIPS) -> None:
    from diffusers import UNet2DConditionModel

    torch.manual_seed(recipe.seed)
    tokenizer, encoder = load_text(out)
    unet = make_video_unet(UNet2DConditionModel.from_pretrained(out / "image" / "unet", torch_dtype=torch.float32))
    data = training_set(out, runs, clips)
    train("video", [unet], video_loss("video", unet, encoder.to(recipe.device), tokenizer, recipe, data), recipe, runs)
    assemble("video", unet, out)


def train_words(recipe: Recipe, runs: Path, out: Path, clips: int = CLIPS) -> None:
    """Single pictures taught the shared text encoder to tell colors and backgrounds apart, but a circle from a square
    hardly; trained on with the video model, it learns to. The result is the video model's own."""
    _train_on("words", recipe, runs, out, training_set(out, runs, clips))


def train_shapes(recipe: Recipe, runs: Path, out: Path, clips: int = CLIPS) -> None:
    """Square and circle differ by less than a latent cell, too little for a plain mean to care: half of every batch
    shows them, at the noise levels where a shape is decided, and the sprite counts 5 times to the end."""
    _train_on("shapes", recipe, runs, out, training_set(out, runs, clips), focus=True)


def train_things(recipe: Recipe, runs: Path, out: Path, clips: int = CLIPS) -> None:
    """On, with scenes of none, one or two sprites, as `train_shapes` does with one, on the latents of the VAE that was
    trained on with such scenes. The result stands beside the video model."""
    data = scene_set(out / CRISP, runs, clips, recipe.device)
    _train_on("things", recipe, runs, out, data, focus=True, into="things", vae=CRISP)


def _train_on(
    name: str, recipe: Recipe, runs: Path, out: Path, data, focus: bool = False, into: str = "video", vae: str = "vae"
) -> None:
    """The video model goes on, its text encoder with it."""
    from diffusers import UNet3DConditionModel
    from transformers import CLIPTextModel

    torch.manual_seed(recipe.seed)
    tokenizer, _ = load_text(out)
    folder = out / "video"
    encoder = CLIPTextModel.from_pretrained(folder / "text_encoder").float()
    unet = UNet3DConditionModel.from_pretrained(folder / "unet", torch_dtype=torch.float32)
    loss = video_loss(name, without_dropout(unet), encoder, tokenizer, recipe, data, focus)
    train(name, [unet, encoder], loss, recipe, runs)
    assemble(into, unet, out, encoder, vae=vae)


def video_loss(
    name: str, unet, encoder, tokenizer, recipe: Recipe, data: tuple[Tensor, Tensor, list[str]], focus: bool = False
) -> Loss:
    """The loss on clips; with `focus`, that of `train_shapes` and `train_things`."""
    latents, cells, sentences = data
    alike = squares_and_circles(sentences)
    ids = torch.stack([text.token_ids(tokenizer, [p + s for s in sentences]) for p in ("", PREFIXES[0])])
    empty, alpha_bar = text.token_ids(tokenizer, [""])[0], alpha_bars()

    def loss(step: int, generator: torch.Generator) -> dict[str, Tensor]:
        n = BATCH[name]
        i = torch.randint(len(latents), (n,), generator=generator)
        if focus:
            i[: n // 2] = alike[torch.randint(len(alike), (n // 2,), generator=generator)]
        x, m = latents[i].float(), cells[i][:, :, None].float()
        flip = torch.rand(n, 1, 1, 1, 1, generator=generator) < 0.5  # time reversal doubles the paths
        x, m = (torch.where(flip, a.flip(1), a).transpose(1, 2) for a in (x, m))
        prefix = (torch.rand(n, generator=generator) < 0.15).long()
        prompt = torch.where(torch.rand(n, 1, generator=generator) < 0.1, empty, ids[prefix, i])
        t = stratified_timesteps(n, generator)
        t = torch.where(torch.arange(n) < n // 2, 100 + t * 6 // 10, t) if focus else t
        noised, v = add_noise(x, t, torch.randn(x.shape, generator=generator), alpha_bar)
        noised, v, m, t, prompt = (tensor.to(recipe.device) for tensor in (noised, v, m, t, prompt))
        counted = 0 if focus else step  # the weight of the sprite falls with the steps
        return diffusion_loss(unet(noised, t, encoder(prompt)[0]).sample, v, m, counted, recipe.steps)

    return loss
