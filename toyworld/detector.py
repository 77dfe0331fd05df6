"""A small detector that reads text, for the toy world: OWLv2's own classes, and their training.

Trained in the manner of OWL-ViT (Minderer et al. 2022): every patch proposes a box and is compared with every text; the
patch that fits a sprite best is matched to it, and learns its box (L1 and GIoU) and its texts (focal loss). A picture
shows none, one or two sprites, and its texts name them and others that are nearly so: another color, another shape, the
color of the one with the shape of the other.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import scenes, text, world
from .sam import box_of
from .towers import small_towers
from .training import Recipe, train

BATCH, TEXTS = 32, 8
COUNTS = (0, 1, 1, 2, 2, 2)  # sprites of a picture, each as often as it is written here
LEAST = 60  # pixels; a sprite of which less is seen need not be found
ABSOLUTE, GIOU, CLASS = 5.0, 2.0, 1.0  # weights of the losses, DETR's
FORMS = ("a {c} {s}", "{c} {s}", "a {c} {s} on a {b} {p} background", "{s}", "a {s}")
NAMES = torch.cartesian_prod(torch.arange(len(world.COLORS)), torch.arange(len(world.SHAPES)))  # [24, (color, shape)]


def make_detector(tokenizer):
    """64x64 pixels, 8x8 patches, 0.6 M parameters."""
    from transformers import Owlv2Config, Owlv2ForObjectDetection

    detector = Owlv2ForObjectDetection(Owlv2Config(**small_towers(tokenizer)))
    # The class draws its heads' weights with a deviation of 1, from which nothing is learned.
    for head in (detector.class_head, detector.box_head, detector.objectness_head):
        for layer in head.modules():
            if isinstance(layer, nn.Linear):
                layer.reset_parameters()
    nn.init.constant_(detector.class_head.logit_shift.bias, -1)  # (cosine - 1) * 5 to begin with: nothing is found
    nn.init.constant_(detector.class_head.logit_scale.bias, 4)
    return detector


def make_processor(tokenizer):
    from transformers import Owlv2ImageProcessor, Owlv2Processor

    return Owlv2Processor(Owlv2ImageProcessor(size={"height": world.SIZE, "width": world.SIZE}), tokenizer)


def train_detector(recipe: Recipe, runs: Path, out: Path) -> None:
    torch.manual_seed(recipe.seed)
    folder = out / "detector"
    tokenizer = text.make_tokenizer(folder)
    model, processor = make_detector(tokenizer), make_processor(tokenizer)
    pixels = processor.image_processor
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (pixels.image_mean, pixels.image_std))

    def loss(step: int, generator: torch.Generator) -> dict[str, Tensor]:
        drawn, pictures, sprites = draw_scenes(BATCH, generator)
        texts, right = texts_for(drawn, generator)
        ids, pictures = text.token_ids(tokenizer, texts).to(recipe.device), ((pictures - mean) / std).to(recipe.device)
        outputs = model(input_ids=ids, pixel_values=pictures, attention_mask=torch.ones_like(ids))
        return losses_of(outputs.logits, outputs.pred_boxes, sprites.to(recipe.device), right.to(recipe.device))

    train("detector", [model], loss, recipe, runs)
    model.half().save_pretrained(folder)
    processor.save_pretrained(folder)
    processor.image_processor.save_pretrained(folder)  # under the name that every version reads
    (folder / "tokenizer.json").unlink(missing_ok=True)  # its format changed; every version reads vocab.json


def draw_frames(n: int, generator: torch.Generator) -> tuple[world.Clips, Tensor, Tensor]:
    """(clips of a single frame, pictures [n, 3, H, W], their sprites [n, H, W] bool)."""
    clips = world.draw(n, generator)
    at = torch.randint(world.FRAMES, (len(clips),), generator=generator)
    clips = replace(clips, center=clips.center[torch.arange(len(clips)), at][:, None])
    video, alpha = world.render(clips)
    return clips, video[:, 0], alpha[:, 0] > 0.5


def draw_scenes(n: int, generator: torch.Generator) -> tuple[scenes.Scenes, Tensor, Tensor]:
    """(scenes of a single frame, pictures [n, 3, H, W], what is seen of their sprites [n, 2, H, W] bool); a sprite that
    is hardly seen has no pixels."""
    drawn = scenes.draw(n, generator, COUNTS)
    drawn = drawn.at(torch.randint(world.FRAMES, (len(drawn), 1), generator=generator))
    video, masks = scenes.render(drawn)
    seen = masks[:, :, 0] > 0.5
    return drawn, video[:, 0], seen & (seen.sum((2, 3), keepdim=True) >= LEAST)


def texts_for(drawn: scenes.Scenes, generator: torch.Generator) -> tuple[list[str], Tensor]:
    """(T texts for each scene in one list, [n, T, 2] bool: which names which sprite), of one form for all of them.

    The sprites' own names are always there, and of the others those more often that share a word with them.
    """
    form = FORMS[torch.randint(len(FORMS), (1,), generator=generator).item()]
    looks = torch.stack([drawn.color, drawn.shape], -1)
    alike = NAMES[:, None] == looks[:, None]  # [n, 24, 2 sprites, (color, shape)]
    if "{c}" in form:
        shares = (alike & drawn.shown[:, None, :, None]).flatten(2).any(2)
        own = (alike.all(3) & drawn.shown[:, None]).any(2)
        weight = torch.where(own, 1e9, torch.where(shares, 1.0, 0.1))
        chosen = weight.multinomial(TEXTS, generator=generator)
        right = alike.all(3).gather(1, chosen[..., None].expand(-1, -1, scenes.MOST))
    else:  # a shape alone may mean both
        chosen = torch.arange(len(world.SHAPES)).expand(len(drawn), -1)
        right = alike[:, : len(world.SHAPES), :, 1]
    colors, backgrounds = list(world.COLORS), list(world.BACKGROUNDS)
    grounds = zip(drawn.background.tolist(), drawn.pattern.tolist())
    texts = [
        form.format(c=colors[c], s=world.SHAPES[s], b=backgrounds[b], p=world.PATTERNS[p])
        for names, (b, p) in zip(NAMES[chosen].tolist(), grounds)
        for c, s in names
    ]
    return texts, right & drawn.shown[:, None]


def boxes_of(sprites: Tensor) -> Tensor:
    """[n, 4]: (center x, center y, width, height) in 0..1."""
    left, top, right, bottom = (box_of(sprites) + sprites.new_tensor([0, 0, 1, 1], dtype=torch.float32)).unbind(1)
    return torch.stack([(left + right) / 2, (top + bottom) / 2, right - left, bottom - top], 1) / world.SIZE


def losses_of(logits: Tensor, boxes: Tensor, sprites: Tensor, right: Tensor) -> dict[str, Tensor]:
    """For logits [n, N, T], proposed boxes [n, N, 4], sprites [n, 2, H, W] bool, and which text names which of them
    [n, T, 2] bool. A sprite without pixels is not there."""
    there, rows = sprites.flatten(2).any(2), torch.arange(len(logits), device=logits.device)
    target, taken = torch.zeros_like(logits), torch.zeros_like(logits[..., 0], dtype=torch.bool)
    placed, overlap = [], []
    for k in range(sprites.shape[1]):
        truth = boxes_of(sprites[:, k])
        absolute = (boxes - truth[:, None]).abs().sum(-1)
        iou, generalised = overlaps(boxes, truth[:, None])
        with torch.no_grad():  # a patch that the sprite does not cover is not asked to know where it is
            covered = F.adaptive_avg_pool2d(sprites[:, k, None].float(), int(logits.shape[1] ** 0.5)).flatten(1)
            named = (logits.sigmoid() * right[:, None, :, k]).amax(2)
            cost = ABSOLUTE * absolute - GIOU * generalised - CLASS * named
            free = (covered >= 0.5 * covered.amax(1, keepdim=True)) & ~taken
            match = torch.where(free, cost, torch.inf).argmin(1)
        placed.append((ABSOLUTE * absolute + GIOU * (1 - generalised))[rows, match] * there[:, k])
        overlap.append(iou[rows, match].detach()[there[:, k]])
        found = rows[there[:, k]], match[there[:, k]]
        target[found] = right[there[:, k], :, k].float()
        taken[found] = True
    entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    focal = torch.where(target > 0, 0.75, 0.25) * (1 - torch.exp(-entropy)) ** 2 * entropy
    count = there.sum().clamp(min=1)
    best = logits.detach().amax(1).sigmoid()
    said = (right & there[:, None]).any(2)
    return {
        "loss": torch.stack(placed).sum() / count + CLASS * focal.sum() / count,
        "iou": torch.cat(overlap).mean(),
        "score_right": best[said].mean(),
        "score_wrong": best[~said].mean(),
    }


def overlaps(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """(IoU, generalised IoU) of boxes (center x, center y, width, height) [..., 4]; Rezatofighi et al. 2019."""
    (low_a, high_a), (low_b, high_b) = _corners(a), _corners(b)
    both = (torch.minimum(high_a, high_b) - torch.maximum(low_a, low_b)).clamp(min=0).prod(-1)
    either = a[..., 2:].prod(-1) + b[..., 2:].prod(-1) - both
    around = (torch.maximum(high_a, high_b) - torch.minimum(low_a, low_b)).prod(-1)
    iou = both / either
    return iou, iou - (around - either) / around


def _corners(box: Tensor) -> tuple[Tensor, Tensor]:
    return box[..., :2] - box[..., 2:] / 2, box[..., :2] + box[..., 2:] / 2
