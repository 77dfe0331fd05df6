"""Trains the image models: the runs `image`, `detail` and `epsilon`, on single frames."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from . import text
from .dataset import CLIPS, PREFIXES, scene_set, squares_and_circles, training_set
from .losses import diffusion_loss
from .models import assemble, load_text, make_image_unet, refined
from .training import Loss, Recipe, add_noise, alpha_bars, stratified_timesteps, train
from .vae import CRISP

BATCH = {"image": 64, "detail": 48, "epsilon": 96}


def train_image(recipe: Recipe, runs: Path, out: Path, clips: int = CLIPS) -> None:
    torch.manual_seed(recipe.seed)
    tokenizer = text.make_tokenizer(out / "tokenizer")
    encoder, unet = text.make_text_encoder(tokenizer), make_image_unet(fine=False)
    loss = image_loss("image", unet, encoder, tokenizer, recipe, training_set(out, runs, clips))
    train("image", [unet, encoder], loss, recipe, runs)
    encoder.save_pretrained(out / "text_encoder")
    assemble("image", unet, out)


def train_detail(recipe: Recipe, runs: Path, out: Path, clips: int = CLIPS) -> None:
    """Correspondence and attention across frames want finer tokens than the video model's 8x8. The text encoder goes on
    from the video model's, which tells a circle from a square, and half of every batch shows them."""
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextModel

    torch.manual_seed(recipe.seed)
    tokenizer, _ = load_text(out)
    encoder = CLIPTextModel.from_pretrained(out / "video" / "text_encoder").float()
    unet = refined(UNet2DConditionModel.from_pretrained(out / "image" / "unet", torch_dtype=torch.float32))
    loss = image_loss("detail", unet, encoder, tokenizer, recipe, training_set(out, runs, clips), focus=True)
    train("detail", [unet, encoder], loss, recipe, runs)
    assemble("image", unet, out, encoder)


def train_epsilon(recipe: Recipe, runs: Path, out: Path, clips: int = CLIPS) -> None:
    """The image model on, to predict the noise, as the papers' models do, with scenes of none, one or two sprites: a
    model beside it."""
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextModel

    torch.manual_seed(recipe.seed)
    tokenizer, _ = load_text(out)
    encoder = CLIPTextModel.from_pretrained(out / "image" / "text_encoder").float()
    unet = UNet2DConditionModel.from_pretrained(out / "image" / "unet", torch_dtype=torch.float32)
    data = scene_set(out / CRISP, runs, clips, recipe.device)
    loss = image_loss("epsilon", unet, encoder, tokenizer, recipe, data, focus=True, predicts="epsilon")
    train("epsilon", [unet, encoder], loss, recipe, runs)
    assemble("epsilon", unet, out, encoder, predicts="epsilon", vae=CRISP)


def image_loss(
    name: str,
    unet,
    encoder,
    tokenizer,
    recipe: Recipe,
    data: tuple[Tensor, Tensor, list[str]],
    focus: bool = False,
    predicts: str = "v_prediction",
) -> Loss:
    """The loss on single frames; with `focus`, half of them show a square or a circle and are noised to where a shape
    is decided."""
    latents, cells, sentences = data
    alike = squares_and_circles(sentences)
    ids = torch.stack([text.token_ids(tokenizer, [p + s for s in sentences]) for p in ("", *PREFIXES)])
    empty, alpha_bar = text.token_ids(tokenizer, [""])[0], alpha_bars()
    frames = latents.shape[1]

    def loss(step: int, generator: torch.Generator) -> dict[str, Tensor]:
        n = BATCH[name]
        i = torch.randint(len(latents) * frames, (n,), generator=generator)
        if focus:
            i[: n // 2] = alike[i[: n // 2] % len(alike)] * frames + i[: n // 2] % frames
        x, m = latents.flatten(0, 1)[i].float(), cells.flatten(0, 1)[i][:, None].float()
        prefix = torch.randint(len(ids), (n,), generator=generator) * (torch.rand(n, generator=generator) < 0.3)
        prompt = torch.where(torch.rand(n, 1, generator=generator) < 0.1, empty, ids[prefix, i // frames])
        t = stratified_timesteps(n, generator)
        t = torch.where(torch.arange(n) < n // 2, 100 + t * 6 // 10, t) if focus else t
        noise = torch.randn(x.shape, generator=generator)
        noised, v = add_noise(x, t, noise, alpha_bar)
        wanted = noise if predicts == "epsilon" else v
        noised, wanted, m, t, prompt = (tensor.to(recipe.device) for tensor in (noised, wanted, m, t, prompt))
        return diffusion_loss(unet(noised, t, encoder(prompt)[0]).sample, wanted, m, step, recipe.steps)

    return loss
