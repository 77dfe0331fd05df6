"""Trains the toy world's models: one command a model, each resumable, in this order.

    python -m weft.toyworld.train vae        # frames <-> latents
    python -m weft.toyworld.train image      # UNet2DConditionModel and the text encoder that all models share
    python -m weft.toyworld.train video      # UNet3DConditionModel, its spatial layers started from the image model
    python -m weft.toyworld.train words      # the video model on, with a text encoder of its own
    python -m weft.toyworld.train shapes     # and on, half of it with squares and circles, which it took for one thing
    python -m weft.toyworld.train detail     # the image model on: attention at 16x16, and the words it confused
    python -m weft.toyworld.train instruct   # 8-channel UNet2DConditionModel (InstructPix2Pix), from the image model
    python -m weft.toyworld.train sam        # a small SAM, for masks by click; on its own
    python -m weft.toyworld.train detector   # a small OWLv2, for boxes by text; on its own
    python -m weft.toyworld.train clip       # a small CLIP, to judge edits; on its own

`--steps N` shortens a run. Working files go to `toyworld/runs`, finished models to `toyworld/weights/<model>` as
diffusers folders in fp16, their logs to `toyworld/logs`.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import shutil
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from . import text, world
from .detector import train_detector
from .judge import train_judge
from .models import assemble, load_text, make_image_unet, make_vae, make_video_unet, refined, without_dropout
from .sam import train_sam
from .training import Loss, Recipe, add_noise, alpha_bars, stratified_timesteps, train

HERE = Path(__file__).resolve().parent
RECIPES = {
    "vae": Recipe(steps=900, peak_rate=3e-3, weight_decay=1e-4, warmup=50, ema=0.99, seed=1),
    "image": Recipe(steps=3200, peak_rate=2e-3, seed=2),
    "video": Recipe(steps=3000, peak_rate=1.5e-3, seed=3),
    "words": Recipe(steps=1000, peak_rate=1.2e-3, warmup=50, seed=5),
    "shapes": Recipe(steps=650, peak_rate=1.5e-3, warmup=30, ema=0.99, seed=6),
    "detail": Recipe(steps=1400, peak_rate=1.5e-3, warmup=50, seed=7),
    "instruct": Recipe(steps=1500, peak_rate=1.5e-3, seed=4),
    "sam": Recipe(steps=1200, peak_rate=1e-3, seed=1234),
    "detector": Recipe(steps=2000, peak_rate=1.5e-3, seed=1234),
    "clip": Recipe(steps=3000, peak_rate=1.5e-3, seed=1234),
}
BATCH = {"image": 64, "video": 8, "detail": 48, "instruct": 40}
CLIPS, CLIPS_SEED = 3000, 1234  # the training set; every other seed is held out
PREFIXES = ("a video of ", "a photo of ", "make it ", "turn it into ")
# ---- the VAE --------------------------------------------------------------------------------------------------------


def train_vae(recipe: Recipe, runs: Path, out: Path) -> None:
    torch.manual_seed(recipe.seed)
    vae = make_vae()

    @lru_cache(maxsize=1)
    def frames(epoch: int) -> Tensor:
        clips = world.draw(384, torch.Generator().manual_seed(CLIPS_SEED + epoch))
        return world.render(clips)[0].flatten(0, 1) * 2 - 1

    def loss(step: int, generator: torch.Generator) -> dict[str, Tensor]:
        pool = frames(step // 300)
        crops = step < 0.7 * recipe.steps  # crops first: four times as many gradients a second
        x = pool[torch.randint(len(pool), (64 if crops else 24,), generator=generator)]
        if crops:
            top, left = torch.randint(0, 33, (2,), generator=generator).tolist()
            x = x[:, :, top : top + 32, left : left + 32]
        posterior = vae.encode(x).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=generator)
        y = vae.decode(posterior.mean + posterior.std * noise).sample
        mse, l1 = (y - x).square().mean(), (y - x).abs().mean()
        kl = 0.5 * (posterior.mean.square() + posterior.var - 1 - posterior.logvar).mean()
        return {"loss": mse + 0.2 * l1 + 1e-4 * kl, "mse": mse.detach()}

    train("vae", [vae], loss, recipe, runs)
    whiten(vae)
    vae.save_pretrained(out / "vae")


@torch.no_grad()
def whiten(vae) -> None:
    """Folds zero mean and unit variance of each latent channel into the two 1x1 convolutions; exact."""
    clips = world.render(world.draw(64, torch.Generator().manual_seed(5)))[0]
    z = vae.encode(clips.flatten(0, 1) * 2 - 1).latent_dist.mean
    mean, std = z.mean((0, 2, 3)), z.std((0, 2, 3))
    into, outof = vae.quant_conv, vae.post_quant_conv
    outof.bias += outof.weight[:, :, 0, 0] @ mean
    outof.weight *= std[None, :, None, None]
    into.bias[:4] = (into.bias[:4] - mean) / std
    into.weight[:4] /= std[:, None, None, None]
    into.bias[4:] -= 2 * std.log()


# ---- latents of the training clips ----------------------------------------------------------------------------------


@torch.no_grad()
def encode(vae, video: Tensor, batch: int = 64) -> Tensor:
    """[n, F, 3, H, W] in 0..1 -> latents [n, F, 4, h, w]."""
    x = video.flatten(0, 1) * 2 - 1
    return torch.cat([vae.encode(part).latent_dist.mode() for part in x.split(batch)]).unflatten(0, video.shape[:2])


def training_set(out: Path, runs: Path, clips: int = CLIPS) -> tuple[Tensor, Tensor, list[str]]:
    """(latents [n, F, 4, h, w], sprite cells [n, F, h, w] bool, captions), cached in `runs`."""
    from diffusers import AutoencoderKL

    generator = torch.Generator().manual_seed(CLIPS_SEED)
    batches = [world.draw(100, generator) for _ in range(math.ceil(clips / 100))]
    cells = torch.cat([F.max_pool2d(world.sprite_alpha(b), 4) > 0.3 for b in batches])
    sentences = [s for b in batches for s in world.captions(b)]
    vae_id = hashlib.sha256((out / "vae" / "diffusion_pytorch_model.safetensors").read_bytes()).hexdigest()[:8]
    cache = runs / f"latents-{clips}-{vae_id}.pt"
    if not cache.exists():
        runs.mkdir(parents=True, exist_ok=True)
        vae = AutoencoderKL.from_pretrained(out / "vae").eval()
        torch.save(torch.cat([encode(vae, world.render(b)[0]).half() for b in batches]), cache)
    return torch.load(cache, weights_only=True), cells, sentences


def sprite_weight(cells: Tensor, step: int, steps: int) -> Tensor:
    """Loss weights of mean 1: the sprite, a tenth of the cells, counts 5 times at first, once from 70 % on."""
    weight = 1 + 4 * max(0.0, 1 - step / (0.7 * steps)) * cells
    return weight / weight.mean()


def diffusion_loss(predicted: Tensor, target: Tensor, cells: Tensor, step: int, steps: int) -> dict[str, Tensor]:
    squared = (predicted - target).square()
    sprite = (squared.detach() * cells).sum() / (cells.expand_as(squared).sum())
    weighted = (squared * sprite_weight(cells, step, steps)).mean()
    return {"loss": weighted, "mse": squared.detach().mean(), "sprite": sprite}


# ---- the models -----------------------------------------------------------------------------------------------------


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


def image_loss(
    name: str, unet, encoder, tokenizer, recipe: Recipe, data: tuple[Tensor, Tensor, list[str]], focus: bool = False
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
        noised, v = add_noise(x, t, torch.randn(x.shape, generator=generator), alpha_bar)
        return diffusion_loss(unet(noised, t, encoder(prompt)[0]).sample, v, m, step, recipe.steps)

    return loss


def train_video(recipe: Recipe, runs: Path, out: Path, clips: int = CLIPS) -> None:
    from diffusers import UNet2DConditionModel

    torch.manual_seed(recipe.seed)
    tokenizer, encoder = load_text(out)
    unet = make_video_unet(UNet2DConditionModel.from_pretrained(out / "image" / "unet", torch_dtype=torch.float32))
    train("video", [unet], video_loss(unet, encoder, tokenizer, recipe, training_set(out, runs, clips)), recipe, runs)
    assemble("video", unet, out)


def train_words(
    recipe: Recipe, runs: Path, out: Path, clips: int = CLIPS, name: str = "words", focus: bool = False
) -> None:
    """Single pictures taught the shared text encoder to tell colors and backgrounds apart, but a circle from a square
    hardly; trained on with the video model, it learns to. The result is the video model's own."""
    from diffusers import UNet3DConditionModel
    from transformers import CLIPTextModel

    torch.manual_seed(recipe.seed)
    tokenizer, _ = load_text(out)
    folder = out / "video"
    encoder = CLIPTextModel.from_pretrained(folder / "text_encoder").float()
    unet = UNet3DConditionModel.from_pretrained(folder / "unet", torch_dtype=torch.float32)
    loss = video_loss(without_dropout(unet), encoder, tokenizer, recipe, training_set(out, runs, clips), focus)
    train(name, [unet, encoder], loss, recipe, runs)
    assemble("video", unet, out, encoder)


def train_shapes(recipe: Recipe, runs: Path, out: Path, clips: int = CLIPS) -> None:
    """Square and circle differ by less than a latent cell, too little for a plain mean to care: half of every batch
    shows them, at the noise levels where a shape is decided, and the sprite counts 5 times to the end."""
    train_words(recipe, runs, out, clips, name="shapes", focus=True)


def video_loss(
    unet, encoder, tokenizer, recipe: Recipe, data: tuple[Tensor, Tensor, list[str]], focus: bool = False
) -> Loss:
    """The loss on clips; with `focus`, that of `train_shapes`."""
    latents, cells, sentences = data
    alike = squares_and_circles(sentences)
    ids = torch.stack([text.token_ids(tokenizer, [p + s for s in sentences]) for p in ("", PREFIXES[0])])
    empty, alpha_bar = text.token_ids(tokenizer, [""])[0], alpha_bars()

    def loss(step: int, generator: torch.Generator) -> dict[str, Tensor]:
        n = BATCH["video"]
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
        counted = 0 if focus else step  # the weight of the sprite falls with the steps
        return diffusion_loss(unet(noised, t, encoder(prompt)[0]).sample, v, m, counted, recipe.steps)

    return loss


def squares_and_circles(sentences: list[str]) -> Tensor:
    """Which clips show the two shapes that differ by less than a latent cell."""
    return torch.tensor([k for k, s in enumerate(sentences) if "square" in s or "circle" in s])


def train_instruct(recipe: Recipe, runs: Path, out: Path, clips: int = CLIPS) -> None:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel

    torch.manual_seed(recipe.seed)
    tokenizer, _ = load_text(out)
    encoder = CLIPTextModel.from_pretrained(out / "image" / "text_encoder").float().eval().requires_grad_(False)
    vae = AutoencoderKL.from_pretrained(out / "vae").eval()
    image = UNet2DConditionModel.from_pretrained(out / "image" / "unet", torch_dtype=torch.float32)
    unet = make_image_unet(in_channels=8)
    weights = image.state_dict()
    widened = torch.zeros_like(unet.conv_in.weight)
    widened[:, :4] = weights["conv_in.weight"]  # the source picture starts without a say
    unet.load_state_dict({**weights, "conv_in.weight": widened})
    source, target, cells, sentences = instruction_pairs(vae, clips)
    with torch.no_grad():
        prompts = encoder(text.token_ids(tokenizer, sentences))[0]
        empty = encoder(text.token_ids(tokenizer, [""]))[0]
    alpha_bar = alpha_bars()

    def loss(step: int, generator: torch.Generator) -> dict[str, Tensor]:
        n = BATCH["instruct"]
        i, f = torch.randint(len(source), (n,), generator=generator), torch.randint(2, (n,), generator=generator)
        x, m = target[i, f], cells[i, f][:, None].float()
        dice = torch.rand(n, 1, 1, generator=generator)
        prompt = torch.where(dice < 0.10, empty, prompts[i])  # 5 % drop the text, 5 % both, 5 % the picture
        given = torch.where(((dice > 0.05) & (dice < 0.15))[..., None], torch.zeros(()), source[i, f])
        t = stratified_timesteps(n, generator)
        noised, v = add_noise(x, t, torch.randn(x.shape, generator=generator), alpha_bar)
        return diffusion_loss(unet(torch.cat([noised, given], 1), t, prompt).sample, v, m, step, recipe.steps)

    train("instruct", [unet], loss, recipe, runs)
    assemble("instruct", unet, out, encoder)


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


MODELS = {
    "vae": train_vae,
    "image": train_image,
    "video": train_video,
    "words": train_words,
    "shapes": train_shapes,
    "detail": train_detail,
    "instruct": train_instruct,
    "sam": train_sam,
    "detector": train_detector,
    "clip": train_judge,
}
DRAW_AS_THEY_GO = {"vae", "sam", "detector", "clip"}  # the others are trained on a set of clips


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("--steps", type=int, help="train for fewer steps than the recipe")
    parser.add_argument("--clips", type=int, default=CLIPS, help="size of the training set")
    parser.add_argument("--runs", type=Path, default=HERE / "runs", help="checkpoints and caches")
    parser.add_argument("--out", type=Path, default=HERE / "weights", help="finished models")
    parser.add_argument("--logs", type=Path, default=HERE / "logs", help="logs of finished runs")
    arguments = parser.parse_args()
    recipe = RECIPES[arguments.model]
    if arguments.steps:
        recipe = replace(recipe, steps=arguments.steps)
    model = MODELS[arguments.model]
    if arguments.model not in DRAW_AS_THEY_GO:
        model = partial(model, clips=arguments.clips)
    model(recipe, arguments.runs, arguments.out)
    arguments.logs.mkdir(parents=True, exist_ok=True)
    shutil.copy(arguments.runs / f"{arguments.model}.log", arguments.logs)


if __name__ == "__main__":
    main()
