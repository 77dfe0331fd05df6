"""Trains the instruction model: the run `instruct`, on frames before and after an edit."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from . import text, world
from .dataset import CLIPS, CLIPS_SEED, encode
from .losses import diffusion_loss
from .models import assemble, load_text, make_image_unet
from .training import Loss, Recipe, add_noise, alpha_bars, stratified_timesteps, train

BATCH = 40


def train_instruct(recipe: Recipe, runs: Path, out: Path, clips: int = CLIPS) -> None:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel

    torch.manual_seed(recipe.seed)
    tokenizer, _ = load_text(out)
    encoder = CLIPTextModel.from_pretrained(out / "image" / "text_encoder").float().eval().requires_grad_(False)
    vae = AutoencoderKL.from_pretrained(out / "vae").eval()
    unet = widened(UNet2DConditionModel.from_pretrained(out / "image" / "unet", torch_dtype=torch.float32))
    loss = instruct_loss(unet, encoder, tokenizer, recipe, instruction_pairs(vae, clips))
    train("instruct", [unet], loss, recipe, runs)
    assemble("instruct", unet, out, encoder)


def widened(image_unet):
    """The image UNet with four more channels of input, for the latent of the source picture."""
    unet = make_image_unet(in_channels=8)
    weights = image_unet.state_dict()
    entry = torch.zeros_like(unet.conv_in.weight)
    entry[:, :4] = weights["conv_in.weight"]  # the source picture starts without a say
    unet.load_state_dict({**weights, "conv_in.weight": entry})
    return unet


def instruct_loss(unet, encoder, tokenizer, recipe: Recipe, pairs: tuple[Tensor, Tensor, Tensor, list[str]]) -> Loss:
    """The loss on edited frames, given the source and the instruction, one of them, or neither."""
    source, target, cells, sentences = pairs
    with torch.no_grad():
        prompts = encoder(text.token_ids(tokenizer, sentences))[0]
        empty = encoder(text.token_ids(tokenizer, [""]))[0]
    alpha_bar = alpha_bars()

    def loss(step: int, generator: torch.Generator) -> dict[str, Tensor]:
        n = BATCH
        i, f = torch.randint(len(source), (n,), generator=generator), torch.randint(2, (n,), generator=generator)
        x, m = target[i, f], cells[i, f][:, None].float()
        dice = torch.rand(n, 1, 1, generator=generator)
        prompt = torch.where(dice < 0.10, empty, prompts[i])  # 5 % drop the text, 5 % both, 5 % the picture
        given = torch.where(((dice > 0.05) & (dice < 0.15))[..., None], torch.zeros(()), source[i, f])
        t = stratified_timesteps(n, generator)
        noised, v = add_noise(x, t, torch.randn(x.shape, generator=generator), alpha_bar)
        inputs = torch.cat([noised, given], 1), t, prompt
        predicted = unet(*(tensor.to(recipe.device) for tensor in inputs)).sample
        return diffusion_loss(predicted, v.to(recipe.device), m.to(recipe.device), step, recipe.steps)

    return loss


def instruction_pairs(vae, clips: int) -> tuple[Tensor, Tensor, Tensor, list[str]]:
    """Two frames of each clip before and after an edit: (source, target [n, 2, 4, h, w], cells, instructions)."""
    generator = torch.Generator().manual_seed(CLIPS_SEED + 1)
    kinds = [("shape", "color"), ("color",), ("shape",), ("background", "pattern")]
    source, target, cells, sentences = [], [], [], []
    for kind in kinds:
        before = world.draw(max(1, clips // len(kinds)), generator)
        after = world.edit(before, generator, kind)
        frames = [0, world.FRAMES // 2]
        (a, alpha_a), (b, alpha_b) = world.render(before), world.render(after)
        source.append(encode(vae, a[:, frames]))
        target.append(encode(vae, b[:, frames]))
        cells.append(F.max_pool2d(torch.maximum(alpha_a, alpha_b)[:, frames], 4) > 0.3)
        sentences += world.instructions(before, after)
    return torch.cat(source), torch.cat(target), torch.cat(cells), sentences
