"""A small detector that reads text, for the toy world: OWLv2's own classes, and their training.

Trained in the manner of OWL-ViT (Minderer et al. 2022): every patch proposes a box and is compared with every text; the
patch that fits the sprite best is matched to it, and learns its box (L1 and GIoU) and its texts (focal loss). Of the
texts of a picture one is right, and the others are nearly so: another color, another shape.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import text, world
from .sam import box_of
from .towers import small_towers
from .training import Recipe, train

BATCH, TEXTS = 32, 4
ABSOLUTE, GIOU, CLASS = 5.0, 2.0, 1.0  # weights of the losses, DETR's
FORMS = ("a {c} {s}", "{c} {s}", "{s}", "a {s}", "a {c} {s} on a {b} {p} background")


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
        clips, video, sprites = draw_frames(BATCH, generator)
        ids = text.token_ids(tokenizer, [t for i in range(len(clips)) for t in texts_for(clips[i : i + 1], generator)])
        outputs = model(input_ids=ids, pixel_values=(video - mean) / std, attention_mask=torch.ones_like(ids))
        return losses_of(outputs.logits, outputs.pred_boxes, boxes_of(sprites), sprites)

    train("detector", [model], loss, recipe, runs)
    model.half().save_pretrained(folder)
    processor.save_pretrained(folder)


def draw_frames(n: int, generator: torch.Generator) -> tuple[world.Clips, Tensor, Tensor]:
    """(clips of a single frame, pictures [n, 3, H, W], their sprites [n, H, W] bool)."""
    clips = world.draw(n, generator)
    at = torch.randint(world.FRAMES, (len(clips),), generator=generator)
    clips = replace(clips, center=clips.center[torch.arange(len(clips)), at][:, None])
    video, alpha = world.render(clips)
    return clips, video[:, 0], alpha[:, 0] > 0.5


def texts_for(clip: world.Clips, generator: torch.Generator) -> list[str]:
    """One text that is right and three that are not."""
    form = FORMS[_draw(len(FORMS), generator)]
    shapes, colors = list(world.SHAPES), list(world.COLORS)
    shape, color = shapes.pop(clip.shape.item()), colors.pop(clip.color.item())
    ground = {"b": list(world.BACKGROUNDS)[clip.background], "p": world.PATTERNS[clip.pattern]}
    if "{c}" not in form:
        return [form.format(s=s) for s in (shape, *shapes)]
    other_shape, other_color = (words[_draw(len(words), generator)] for words in (shapes, colors))
    pairs = [(color, shape), (other_color, shape), (color, other_shape), (other_color, other_shape)]
    return [form.format(c=c, s=s, **ground) for c, s in pairs]


def _draw(n: int, generator: torch.Generator) -> int:
    return torch.randint(n, (1,), generator=generator).item()


def boxes_of(sprites: Tensor) -> Tensor:
    """[n, 4]: (center x, center y, width, height) in 0..1."""
    left, top, right, bottom = (box_of(sprites) + torch.tensor([0, 0, 1, 1])).unbind(1)
    return torch.stack([(left + right) / 2, (top + bottom) / 2, right - left, bottom - top], 1) / world.SIZE


def losses_of(logits: Tensor, boxes: Tensor, truth: Tensor, sprites: Tensor) -> dict[str, Tensor]:
    """For logits [n, N, TEXTS] whose first text is right, proposed boxes [n, N, 4] and the true ones [n, 4]."""
    absolute = (boxes - truth[:, None]).abs().sum(-1)
    overlap, generalised = overlaps(boxes, truth[:, None])
    with torch.no_grad():  # a patch that the sprite does not cover is not asked to know where it is
        grid = int(logits.shape[1] ** 0.5)
        covered = F.adaptive_avg_pool2d(sprites[:, None].float(), grid).flatten(1)
        cost = ABSOLUTE * absolute - GIOU * generalised - CLASS * logits[..., 0].sigmoid()
        match = torch.where(covered >= 0.5 * covered.amax(1, keepdim=True), cost, torch.inf).argmin(1)
    rows = torch.arange(len(truth))
    target = torch.zeros_like(logits)
    target[rows, match, 0] = 1
    entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    focal = (torch.where(target > 0, 0.75, 0.25) * (1 - torch.exp(-entropy)) ** 2 * entropy).sum() / len(truth)
    total = ABSOLUTE * absolute[rows, match] + GIOU * (1 - generalised[rows, match])
    best = logits.flatten(1).argmax(1)
    return {
        "loss": total.mean() + CLASS * focal,
        "iou": overlap[rows, match].mean().detach(),
        "right_text": (best % logits.shape[-1] == 0).float().mean(),
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
