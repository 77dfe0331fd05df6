"""Test-time editing adaptation: an instruction model learns, from one edit that was found good, what is meant.

paper    VIA, Gu et al. 2024 (arXiv 2406.12831), section 4.1, equations 1 and 5, and section 5
needs    a model that is given the source's picture; one frame, and the best of several edits of it
gives    training of whatever parameters it is given, such as those of a LoRA; `candidates` has edits to choose from
differs  the paper says neither what is trained nor for how long: ours is meant for LoRA, AdamW, 100 steps of one pair.
         The four transforms are one resampling, so that no picture is blurred twice

Frame and edit are transformed alike, over and over: (source, edited, instruction). The model is trained on these
triples as it was trained before: to say which noise was put on the edited picture.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..engine.autograd import ordinary, plain_torch
from ..engine.call import Evaluation
from ..engine.monitor import SILENT, Monitor
from ..engine.plan import PLAIN
from ..engine.ports import Backbone, Predict
from ..engine.words import POSITIVE, Prompt
from .candidates import require_frame, require_instructed

LEVELS = 500  # noise levels to draw from, evenly spaced over the model's own
PAIRS_AT_ONCE = 4  # through the VAE


# ---- pairs ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ranges:
    """How far a pair is transformed at most, in either direction. The paper's numbers."""

    rotation: float = 5.0  # degrees
    translation: float = 0.05  # of width and of height
    shear: float = 10.0  # degrees, along x
    crop: float = 0.75  # smallest share of the side that is kept

    def __post_init__(self):
        if not (
            0 <= self.rotation <= 180 and 0 <= self.translation <= 1 and 0 <= self.shear < 90 and 0 < self.crop <= 1
        ):
            raise ValueError(
                f"want rotation in 0..180 and shear in 0..90 degrees, translation in 0..1 and crop in 0..1, got {self}"
            )


def transform(pictures: Tensor, ranges: Ranges, generator: torch.Generator) -> Tensor:
    """Equation 5: one random affine transform for all pictures [n, H, W, 3], then a crop, resized to what they were.

    Beyond the edge, pictures go on as in a mirror.
    """
    n, height, width, _ = pictures.shape
    draw = torch.rand(7, generator=generator, dtype=torch.float64) * 2 - 1
    angle, shear = math.radians(ranges.rotation) * draw[0], math.radians(ranges.shear) * draw[1]
    one, zero = torch.ones((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    rotate = torch.stack([torch.stack([angle.cos(), -angle.sin()]), torch.stack([angle.sin(), angle.cos()])])
    slant = torch.stack([torch.stack([one, shear.tan()]), torch.stack([zero, one])])
    half = torch.tensor([width, height], dtype=torch.float64) / 2  # angles are meant in pixels, the grid is in halves
    back = torch.linalg.inv((rotate @ slant) * half / half[:, None])
    move = 2 * ranges.translation * draw[2:4]
    share = ranges.crop + (1 - ranges.crop) * (draw[4] + 1) / 2
    center = (1 - share) * draw[5:7]
    theta = torch.cat([back * share, (back @ (center - move))[:, None]], 1).to(pictures)
    grid = F.affine_grid(theta.expand(n, -1, -1), [n, 3, height, width], align_corners=False)
    moved = F.grid_sample(pictures.movedim(-1, 1), grid, padding_mode="reflection", align_corners=False)
    return moved.movedim(1, -1).clamp(0, 1)


def _pairs(backbone: Backbone, pair: Tensor, count: int, ranges: Ranges, generator, monitor: Monitor) -> Tensor:
    """[count, 2, C, h, w] the network's latents of source and edit, each pair under a transform of its own."""
    latents = []
    for first in range(0, count, PAIRS_AT_ONCE):
        monitor.check()
        some = range(first, min(first + PAIRS_AT_ONCE, count))
        pictures = torch.cat([transform(pair, ranges, generator) for _ in some])
        latents.append(backbone.codec.scale(backbone.codec.encode(pictures)).unflatten(0, (-1, 2)))
    return torch.cat(latents)


# ---- training -------------------------------------------------------------------------------------------------------


@plain_torch
def fit(
    backbone: Backbone,
    parameters: Sequence[nn.Parameter],
    source: Tensor,
    edited: Tensor,
    instruction: Prompt,
    *,
    steps: int = 100,
    rate: float = 1e-4,
    drop: float = 0.05,
    ranges: Ranges = Ranges(),
    seed: int = 0,
    monitor: Monitor = SILENT,
) -> list[float]:
    """Trains parameters of a model, in place, to make of the source the edited picture when told the instruction.

    Whenever it ends, also by an error or a cancel, the parameters are those after the last whole step.

    Args:
        parameters: of the network that `backbone.denoiser` evaluates, in float32 though the network be in less.
        source, edited: [1, H, W, 3] in 0..1, the root pair.
        rate: learning rate of AdamW; InstructPix2Pix was trained with 1e-4.
        drop: how often the text, the picture, and both are left out, each (InstructPix2Pix: 5 %), for guidance.
        seed: of transforms, noise and what is left out.

    Returns:
        The mean squared error of each step; uneven, as noise levels differ.

    Raises:
        ValueError: a model that is not given the source's picture, pictures that are not a pair, an instruction of
            another model or for several frames, numbers that make no sense, or a loss that is no number.
    """
    require_teachable(backbone, instruction, steps, rate, drop)
    _require_pair(parameters, source, edited, rate)
    generator = torch.Generator().manual_seed(seed)
    denoiser, empty = backbone.denoiser, backbone.text.embed("")
    schedule = denoiser.schedule(LEVELS)
    pair = torch.cat([ordinary(source), ordinary(edited)]).float()
    latents = _pairs(backbone, pair, steps, ranges, generator, monitor).to(denoiser.device)
    optimizer = torch.optim.AdamW(parameters, lr=rate)
    losses: list[float] = []

    def body(predict: Predict) -> None:
        for step, (given, wanted) in enumerate(latents):
            monitor.check()
            level = int(torch.randint(1, LEVELS + 1, (), generator=generator))
            eps = torch.randn(wanted.shape, generator=generator).to(wanted)
            dice = torch.rand((), generator=generator).item() / drop if drop else math.inf
            evaluation = Evaluation(  # 0..1 leaves out the text, 1..2 both, 2..3 the picture
                schedule.noised(wanted, eps, level)[None, None],
                schedule.label(level),
                (empty if dice < 2 else instruction,),
                (POSITIVE,),
                image=given[None] * (not 1 <= dice < 3),
            )
            error = (predict(evaluation, PLAIN)[0, 0] - schedule.answer(wanted, eps, level)).square()
            optimizer.zero_grad()
            error.sum().backward()  # not the mean, whose gradient half precision would lose; AdamW does not mind
            losses.append(error.mean().item())
            _require_number(losses[-1], parameters, step)
            optimizer.step()
            monitor.progress(step + 1, steps)

    reserve = denoiser.bytes(1, 1, tuple(latents.shape[-2:]), grad=True)
    with torch.enable_grad():
        denoiser.session([empty, instruction], latents[:1, 0], schedule, body, reserve=reserve)
    return losses


def _require_number(loss: float, parameters: Sequence[nn.Parameter], step: int) -> None:
    if not math.isfinite(loss) or not all(p.grad is None or p.grad.isfinite().all() for p in parameters):
        raise ValueError(
            f"the training became NaN or infinite at step {step + 1}: lower the learning rate, or load the model in "
            "float32"
        )


def require_teachable(backbone: Backbone, instruction: Prompt, steps: int, rate: float, drop: float) -> None:
    """What `fit` refuses, less the pair itself. To be asked before that is made."""
    require_instructed(backbone)
    if instruction.frames != 1:
        raise ValueError(f"want one instruction for the pair, got one for each of {instruction.frames} frames")
    backbone.require_prompt(instruction, 1)
    if steps < 1 or not rate > 0 or not 0 <= drop <= 1 / 3:
        raise ValueError(
            f"want 1 step or more, a rate over 0 and drop in 0..1/3, got steps {steps}, rate {rate}, drop {drop}"
        )


def _require_pair(parameters: Sequence[nn.Parameter], source: Tensor, edited: Tensor, rate: float) -> None:
    require_frame(source, "source")
    require_frame(edited, "edited picture")
    if source.shape != edited.shape:
        raise ValueError(f"source and edited picture differ in size: {list(source.shape)} and {list(edited.shape)}")
    if small := {p.dtype for p in parameters if p.dtype.itemsize < torch.float32.itemsize}:
        raise ValueError(
            f"want parameters in float32, got {', '.join(map(str, small))}: steps as small as {rate:g} are lost there"
        )


# ---- to be looked at ------------------------------------------------------------------------------------------------


MARGINS = {"left": 48, "top": 10, "right": 12, "bottom": 32}  # pixels, for the axes
TICKS = 5


def curve(losses: Sequence[float], size: tuple[int, int] = (256, 512), smooth: float = 0.9) -> Tensor:
    """[1, H, W, 3] the loss over the steps, with axes: light each step's, dark the running mean. The bottom is 0."""
    from numpy import asarray
    from PIL import Image, ImageDraw, ImageFont

    left, top = MARGINS["left"], MARGINS["top"]
    height, width = size[0] - top - MARGINS["bottom"], size[1] - left - MARGINS["right"]
    inside = Image.fromarray((lines(losses, (height, width), smooth)[0] * 255).byte().numpy())
    sheet = Image.new("RGB", (size[1], size[0]), "white")
    sheet.paste(inside, (left, top))
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    pen.line([(left, top), (left, top + height), (left + width, top + height)], fill="gray")
    for k in range(TICKS):
        share = k / (TICKS - 1)
        y, x = top + (1 - share) * (height - 1), left + share * (width - 1)
        pen.line([(left - 4, y), (left, y)], fill="gray")
        pen.text((left - 6, y), f"{share * max(losses):.3g}", "black", font, anchor="rm")
        pen.line([(x, top + height), (x, top + height + 4)], fill="gray")
        pen.text((x, top + height + 5), f"{round(1 + share * (len(losses) - 1))}", "black", font, anchor="ma")
    pen.text((left + width / 2, size[0] - 2), "training step", "black", font, anchor="md")
    pen.text((left + width, top), "loss", "black", font, anchor="ra")
    return torch.from_numpy(asarray(sheet) / 255).float()[None]


def lines(losses: Sequence[float], size: tuple[int, int], smooth: float) -> Tensor:
    """[1, H, W, 3] the same without axes, from the first step at the left edge to the last at the right."""
    height, width = size
    means, mean = [], losses[0]
    for loss in losses:
        mean = smooth * mean + (1 - smooth) * loss
        means.append(mean)
    picture, top = torch.ones(1, height, width, 3), max(max(losses), 1e-12)
    rows = torch.arange(height)[:, None]
    for values, shade in ((losses, 0.8), (means, 0.1)):
        line = torch.tensor(values, dtype=torch.float32)[None, None]
        line = F.interpolate(line, width + 1, mode="linear", align_corners=True)[0, 0]
        y = ((1 - line / top) * (height - 1)).round()
        low, high = torch.minimum(y[:-1], y[1:]), torch.maximum(y[:-1], y[1:])
        picture[0, (rows >= low) & (rows <= high + 1)] = shade
    return picture
