"""A small SAM for the toy world, of Segment Anything's own classes, and its training.

Trained as in the paper (Kirillov et al. 2023, section 3 and appendix A): clicks and boxes with noise, then a click
where the first answer was wrong together with that answer; focal and dice loss 20 to 1, the best of three candidates
for a lone click, and the square error of the predicted IoU. Half of the boxes are those of a neighbouring frame of the
clip: a tracker that goes from frame to frame has no better.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from . import scenes, world
from .training import Recipe, train

BATCH = {"sam": 16, "clicks": 24}
NOT_A_POINT = -1
FOCAL, DICE, SCORE = 20.0, 1.0, 1.0  # weights of the losses, from the paper
PIXELS = 255.0  # SAM reads pixels in 0..255
COUNTS = (1, 2, 2)  # sprites of a picture: two of three show both
LEAST = 40  # pixels; a sprite of which less is seen is not asked for
ON_GROUND = 0.15  # share of the clicks


def make_sam():
    """64x64 pixels, 4x4 patches, 1.3 M parameters."""
    from ..vision import sam_parts

    return sam_parts.make_sam(
        sam_parts.Architecture(
            image_size=world.SIZE,
            patch=4,
            width=96,
            depth=4,
            heads=4,
            window=8,
            global_blocks=(1, 3),
            mlp=288,
            prompt_width=128,
            mask_channels=16,
            decoder_depth=2,
            decoder_mlp=256,
            decoder_downsample=2,
            masks=3,
            score_depth=3,
            score_width=128,
        )
    )


def train_sam(recipe: Recipe, runs: Path, out: Path) -> None:
    """On pictures of one sprite, which is what any click means."""
    torch.manual_seed(recipe.seed)
    _train("sam", make_sam(), recipe, runs, out, counts=(1,), on_ground=0.0)


def train_clicks(recipe: Recipe, runs: Path, out: Path) -> None:
    """On, with pictures that mostly show two sprites, of which one is asked for, and clicks that are on the background
    and ask for it: so a click has to be looked at."""
    from safetensors.torch import load_file

    torch.manual_seed(recipe.seed)
    sam = make_sam()
    sam.load_state_dict(load_file(out / "sam" / "sam.safetensors"))
    _train("clicks", sam, recipe, runs, out, COUNTS, ON_GROUND)


def _train(name: str, sam, recipe: Recipe, runs: Path, out: Path, counts: tuple[int, ...], on_ground: float) -> None:
    from safetensors.torch import save_file

    def loss(step: int, generator: torch.Generator) -> dict[str, Tensor]:
        video, sprites, stale, ground = draw_pairs(BATCH[name], generator, counts)
        images = sam.image_encoder(sam.preprocess(video.to(recipe.device) * PIXELS))
        half = len(video) // 2  # clicks on the one, boxes on the other
        asked = torch.rand(half, 1, 1, generator=generator) < on_ground
        things = torch.where(asked, ground[:half], sprites[:half])
        clicked, boxed = ask_click(things, generator), ask_box(sprites[half:], stale[half:], generator)
        losses = [
            ask_twice(sam, images[:half], clicked, things, generator),
            ask_twice(sam, images[half:], boxed, sprites[half:], generator),
        ]
        return {name: (losses[0][name] + losses[1][name]) / 2 for name in losses[0]}

    train(name, [sam], loss, recipe, runs)
    (out / "sam").mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.half().contiguous() for name, tensor in sam.state_dict().items()}
    save_file(weights, out / "sam" / "sam.safetensors", metadata={"format": "pt"})


def draw_pairs(
    n: int, generator: torch.Generator, counts: tuple[int, ...] = COUNTS
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(pictures [n, 3, H, W], what is seen of one of their sprites, the same in a neighbouring frame, the background:
    bool [n, H, W])."""
    drawn = scenes.draw(n, generator, counts)
    rows = torch.arange(len(drawn))
    at = torch.randint(1, world.FRAMES - 1, rows.shape, generator=generator)
    neighbour = at + torch.randint(2, rows.shape, generator=generator) * 2 - 1
    video, masks = scenes.render(drawn.at(torch.stack([at, neighbour], 1)))
    seen = masks > 0.5  # [n, sprites, 2 frames, H, W]
    area = seen.sum((3, 4)).amin(2)
    which = torch.randint(scenes.MOST, rows.shape, generator=generator)
    which = torch.where(area[rows, which] >= LEAST, which, area.argmax(1))
    return video[:, 0], seen[rows, which, 0], seen[rows, which, 1], masks[:, :, 0].sum(1) < 0.5


# ---- questions: (points [n, k, 2] as (x, y) of pixel centers, labels [n, k], boxes [n, 4] or None) -------------------


def ask_click(things: Tensor, generator: torch.Generator):
    """A click on the thing and, in a third of them, one beside it."""
    on, off = pick(things, generator), pick(~things, generator)
    second = torch.where(torch.rand(len(things), generator=generator) < 1 / 3, 0, NOT_A_POINT)
    labels = torch.stack([torch.ones_like(second), second], 1)
    return torch.stack([on, off], 1), labels, None


def ask_box(sprites: Tensor, stale: Tensor, generator: torch.Generator):
    """A box with noise; half of them are those of a neighbouring frame, grown, with a click well inside it there."""
    n = len(sprites)
    tracked = torch.rand(n, generator=generator) < 0.5
    shape = torch.where(tracked[:, None, None], stale, sprites)
    box = box_of(shape)
    size = (box[:, 2:] - box[:, :2]).repeat(1, 2)
    noise = (0.1 * torch.randn(n, 4, generator=generator)).clamp(-0.3, 0.3)
    grown = torch.tensor([-1.0, -1, 1, 1]) * 0.2 * torch.rand(n, 1, generator=generator) * tracked[:, None]
    labels = torch.where(tracked, 1, NOT_A_POINT)[:, None]
    return inmost(shape)[:, None], labels, (box + size * (noise + grown)).clamp(0, world.SIZE - 1)


def pick(where: Tensor, generator: torch.Generator) -> Tensor:
    """[n, 2]: the (x, y) of a random pixel of each mask [n, H, W]; of any pixel where the mask is empty."""
    weight = where.flatten(1).float() + 1e-9
    index = torch.multinomial(weight, 1, generator=generator)[:, 0]
    return torch.stack([index % where.shape[-1], index // where.shape[-1]], 1).float()


def inmost(masks: Tensor) -> Tensor:
    """[n, 2]: the (x, y) of the pixel of each mask [n, H, W] with the most of it around."""
    around = F.avg_pool2d(masks[:, None].float(), 9, stride=1, padding=4)[:, 0]
    index = torch.where(masks, around, -1.0).flatten(1).argmax(1)
    return torch.stack([index % masks.shape[-1], index // masks.shape[-1]], 1).float()


def box_of(masks: Tensor) -> Tensor:
    """[n, 4]: (left, top, right, bottom) of masks [n, H, W] that are not empty."""
    size = masks.shape[-1]
    bounds = []
    for axis in (1, 2):  # columns, then rows
        line = masks.any(axis)
        bounds += [line.float().argmax(1), size - 1 - line.flip(1).float().argmax(1)]
    left, right, top, bottom = bounds
    return torch.stack([left, top, right, bottom], 1).float()


# ---- answers --------------------------------------------------------------------------------------------------------


def ask_twice(sam, images: Tensor, question, sprites: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
    """Losses of a first answer and of a second, which gets the first and a click where it was wrong."""
    points, labels, boxes = question
    logits, scores = answer(sam, images, points, labels, boxes, None)
    truth = sprites.to(images.device)
    first = losses_of(logits, scores, truth, alone=boxes is None)
    guess = logits[:, 0].detach()
    wrong = (guess.cpu() > 0) != sprites
    click = pick(wrong, generator)
    label = sprites[torch.arange(len(sprites)), click[:, 1].long(), click[:, 0].long()].long()
    unasked = ~wrong.flatten(1).any(1) | (torch.rand(len(sprites), generator=generator) < 1 / 3)
    label = torch.where(unasked, NOT_A_POINT, label)
    points, labels = torch.cat([points, click[:, None]], 1), torch.cat([labels, label[:, None]], 1)
    logits, scores = answer(sam, images, points, labels, boxes, guess[:, None])
    second = losses_of(logits, scores, truth, alone=False)
    return {
        "loss": first["loss"] + second["loss"],
        "iou": first["iou"],
        "iou_second": second["iou"],
        "score_error": first["score_error"],
    }


def answer(sam, images: Tensor, points: Tensor, labels: Tensor, boxes: Tensor | None, masks: Tensor | None):
    """(logits [n, 4, H, W], predicted IoUs [n, 4]): the single answer, then the three for lone clicks."""
    device = images.device
    boxes = None if boxes is None else boxes.to(device)
    sparse, dense = sam.prompt_encoder((points.to(device), labels.to(device)), boxes, masks)
    position = sam.prompt_encoder.get_dense_pe()

    def decode(image: Tensor, sparse: Tensor, dense: Tensor):
        return sam.mask_decoder.predict_masks(image[None], position, sparse[None], dense[None])

    logits, scores = torch.vmap(decode)(images, sparse, dense)  # the decoder takes one picture at a time
    return logits[:, 0], scores[:, 0]


def losses_of(logits: Tensor, scores: Tensor, sprites: Tensor, alone: bool) -> dict[str, Tensor]:
    """The loss of the single answer and, for a lone click, of the best of the three others."""
    truth = sprites[:, None].float()
    each = FOCAL * focal(logits, truth) + DICE * dice(logits, truth)  # [n, 4]
    overlap = iou(logits > 0, sprites[:, None])
    error = (scores - overlap).square()
    total = (each[:, 0] + SCORE * error[:, 0]).mean()
    if alone:
        total = total + each[:, 1:].min(1).values.mean() + SCORE * error[:, 1:].mean()
    return {"loss": total, "iou": overlap[:, 0].mean(), "score_error": error[:, 0].mean().detach().sqrt()}


def focal(logits: Tensor, truth: Tensor, gamma: float = 2.0) -> Tensor:
    """[n, m]: Lin et al. 2017, mean over pixels, without class weights."""
    entropy = F.binary_cross_entropy_with_logits(logits, truth.expand_as(logits), reduction="none")
    return ((1 - torch.exp(-entropy)) ** gamma * entropy).mean((-2, -1))


def dice(logits: Tensor, truth: Tensor) -> Tensor:
    """[n, m]: Milletari et al. 2016, with 1 added above and below."""
    p = logits.sigmoid()
    both, either = (p * truth).sum((-2, -1)), (p + truth).sum((-2, -1))
    return 1 - (2 * both + 1) / (either + 1)


def iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of bool masks [..., H, W]; 1 where both are empty."""
    both, either = (a & b).sum((-2, -1)), (a | b).sum((-2, -1))
    return torch.where(either > 0, both / either.clamp(min=1), 1.0)
