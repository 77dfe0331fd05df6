"""A small CLIP for the toy world, of transformers' own classes, and its training.

Trained as in the paper (Radford et al. 2021): each picture picks its text among the batch's, and each text its picture.
A batch is made of scenes and of three edits of each, which differ in a word or two, as what is to be judged does; and
texts that happen to say the same count as right for each other's pictures.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from . import scenes, text, world
from .detector import draw_frames
from .towers import small_towers
from .training import Recipe, train

BATCH = 64
EDITS = (("color",), ("shape",), ("background", "pattern"))  # what the three others of a group differ in
PREFIXES = ("", "", "a photo of ", "a video of ")
TWO = 0.5  # share of the batches whose scenes have two sprites
LARGEST_SCALE = 100.0  # of the logits, the paper's


def make_clip(tokenizer):
    """64x64 pixels, 8x8 patches, 0.5 M parameters."""
    from transformers import CLIPConfig, CLIPModel

    return CLIPModel(CLIPConfig(**small_towers(tokenizer, projection_dim=text.WIDTH)))


def make_image_processor():
    from transformers import CLIPImageProcessor

    return CLIPImageProcessor(size={"shortest_edge": world.SIZE}, crop_size={"height": world.SIZE, "width": world.SIZE})


def train_judge(recipe: Recipe, runs: Path, out: Path) -> None:
    torch.manual_seed(recipe.seed)
    folder = out / "clip"
    tokenizer = text.make_tokenizer(folder)
    model, pixels = make_clip(tokenizer), make_image_processor()
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (pixels.image_mean, pixels.image_std))

    def loss(step: int, generator: torch.Generator) -> dict[str, Tensor]:
        pictures, captions = draw_groups(BATCH // (1 + len(EDITS)), generator)
        texts = worded(captions, generator)
        ids = text.token_ids(tokenizer, [t for t, _ in texts]).to(recipe.device)
        pictures = (worn(pictures, generator) - mean) / std
        seen = model.vision_model(pictures.to(recipe.device)).pooler_output
        read = model.text_model(ids, attention_mask=torch.ones_like(ids)).pooler_output
        scale = model.logit_scale.exp().clamp(max=LARGEST_SCALE)
        images, words = model.visual_projection(seen), model.text_projection(read)
        return losses_of(scale * F.normalize(images) @ F.normalize(words).T, [said for _, said in texts])

    train("clip", [model], loss, recipe, runs)
    model.half().save_pretrained(folder)
    pixels.save_pretrained(folder)


def draw_groups(n: int, generator: torch.Generator) -> tuple[Tensor, list[str]]:
    """(pictures [4 n, 3, H, W], captions): n scenes, then an edit of all of them, and two more. Every other time, by
    chance, the scenes have two sprites, and the edits are of the first, of the second, and of the background."""
    if torch.rand((), generator=generator) < TWO:
        drawn = scenes.draw(n, generator, (2,))
        drawn = drawn.at(torch.randint(world.FRAMES, (len(drawn), 1), generator=generator))
        edits = [scenes.change(drawn, generator, k) for k in range(scenes.MOST)]
        groups = [drawn, *edits, scenes.change_background(drawn, generator)]
        return torch.cat([scenes.render(g)[0][:, 0] for g in groups]), [c for g in groups for c in scenes.captions(g)]
    clips, *_ = draw_frames(n, generator)
    groups = [clips, *(world.edit(clips, generator, what) for what in EDITS)]
    return torch.cat([world.render(g)[0][:, 0] for g in groups]), [c for g in groups for c in world.captions(g)]


def worn(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """Half of them blurred, all with some noise: edits that a small model makes are not as clean as drawn ones."""
    n = len(pictures)
    blurred = F.avg_pool2d(F.pad(pictures, (1, 1, 1, 1), mode="replicate"), 3, 1)
    pictures = torch.where(torch.rand(n, 1, 1, 1, generator=generator) < 0.5, blurred, pictures)
    noise = 0.06 * torch.rand(n, 1, 1, 1, generator=generator) * torch.randn(pictures.shape, generator=generator)
    return (pictures + noise).clamp(0, 1)


def worded(captions: list[str], generator: torch.Generator) -> list[tuple[str, str]]:
    """(text, what it says) of each: a quarter of the batches leave the background out, as users do."""
    if torch.rand((), generator=generator) < 0.25:
        captions = [c.partition(" on a ")[0] for c in captions]
    picks = torch.randint(len(PREFIXES), (len(captions),), generator=generator).tolist()
    return [(PREFIXES[k] + c, c) for k, c in zip(picks, captions)]


def losses_of(logits: Tensor, said: list[str]) -> dict[str, Tensor]:
    """The symmetric cross entropy of logits [pictures, texts], shared evenly among texts that say the same."""
    names = {s: k for k, s in enumerate(dict.fromkeys(said))}
    index = torch.tensor([names[s] for s in said], device=logits.device)
    target = (index[:, None] == index).float()
    target = target / target.sum(1, keepdim=True)  # symmetric, so rows and columns alike
    picked = index[logits.argmax(1)] == index
    return {
        "loss": (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2,
        "right_text": picked.float().mean(),
    }
