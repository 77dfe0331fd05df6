"""Measures of clips by analysis against the renderer: no learned judge, so a number says what is in the pixels.

`measure` scores an edit against its exact ground truth. `sample_accuracy` scores clips made from captions alone, where
neither the path nor the background's phase is known. Everything runs on the CPU in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from . import world
from .world import Clips

PSNR_CAP = 90.0  # dB
CONTRAST = 0.25  # a pixel belongs to a sprite where some channel differs from the background by more
SMALLEST = 40  # pixels; the smallest sprite the world draws covers 170
LEAST_OVERLAP = 0.5  # intersection over union under which a blob has no shape at all
MISSING_CENTROID = 20.0  # pixels, the error of a frame without a sprite
MISSING_VELOCITY = 8.0  # pixels a frame, the error of a clip with fewer than three sprites
WINDOW = 40  # pixels around a centroid in which shapes are compared; a sprite spans at most 27
POOL = 4  # backgrounds are compared at 16x16: stripes are 8 pixels wide, and the search is 16 times faster


# ---- edits ----------------------------------------------------------------------------------------------------------


def measure(video: Tensor, source: Clips, target: Clips) -> dict[str, Tensor]:
    """How well edited clips show their target.

    Args:
        video: [n, F, 3, 64, 64] in 0..1, the edited clips.
        source: the n clips before the edit.
        target: the n clips the edit should give, as `world.edit` returns them.

    Returns:
        One [n] float32 tensor a measure:
        psnr_truth, psnr_source: dB to the rendered target and source, at most 90.
        psnr_background: dB to the target's background over pixels more than 2 px away from both sprites, at most 90.
        centroid_error_px: distance of the sprite from the target's, mean over frames; a missing sprite counts 20.
        velocity_error_px: mean absolute difference, per coordinate, of the displacement between successive frames that
            show a sprite; 8 where fewer than three do.
        color_accuracy, shape_accuracy, target_accuracy: shares of frames with the target's colour, its shape, and both,
            whether or not the edit changed them; a missing sprite is wrong. A sprite is what stands out of the target's
            background, so an edit that should have changed the background and did not is wrong here too.
        missing: share of frames without a sprite.

    Raises:
        ValueError: video, source and target do not agree in clips, frames or picture size.
    """
    video = _checked(video, target)
    truth, alpha = world.render(target)
    if source.center.shape != target.center.shape:
        raise ValueError(f"source paths {list(source.center.shape)} are not the target's {list(target.center.shape)}")
    before, alpha_before = world.render(source)
    background = world.render_background(target)
    near = F.max_pool2d(torch.maximum(alpha, alpha_before).gt(0).float(), 5, stride=1, padding=2)
    sprites = find_sprites(video, background)
    centroid_error, velocity_error = _motion_errors(sprites, _centroids(alpha))
    return {
        "psnr_truth": psnr(video, truth),
        "psnr_source": psnr(video, before),
        "psnr_background": psnr(video, background[:, None], 1 - near[:, :, None]),
        "centroid_error_px": centroid_error,
        "velocity_error_px": velocity_error,
        **_attribute_accuracy(sprites, target),
    }


def consistency(video: Tensor, target: Clips) -> dict[str, Tensor]:
    """How much edited clips change from frame to frame where they should not, whether they are right or not.

    Args:
        video: [n, F, 3, 64, 64] in 0..1, the edited clips.
        target: the n clips the edit should give; of them, the background counts and where the sprite is.

    Returns:
        One [n] float32 tensor a measure, 0 for what stays the same:
        color_spread: standard deviation over the frames of the sprite's median color, in 0..1, as the root of the mean
            variance of the three channels; frames without a sprite do not count, and a clip with fewer than two that
            have one is 0.5.
        shape_spread: mean over frames of 1 - intersection over union of the sprite with the shape that most frames
            have, both around their centroids; a frame without a sprite is 1. Even the truth is a little over zero, as
            a sprite between two pixels is drawn otherwise than one on a pixel.
        background_spread: standard deviation over the frames of a pixel of the background, root mean square over pixels
            and channels; a pixel counts in the frames where it is more than 4 px away from the sprite.
    """
    video = _checked(video, target)
    sprites = find_sprites(video, world.render_background(target))
    color, shape = [], []
    for found, value, blob in zip(sprites.found, sprites.value, sprites.blob):
        enough = found.sum() >= 2
        color.append(value[found].var(0, correction=0).mean().sqrt() if enough else torch.tensor(0.5))
        most = blob[found].mean(0) >= 0.5 if enough else torch.zeros_like(blob[0], dtype=torch.bool)
        common, either = (blob.bool() & most).sum((1, 2)), (blob.bool() | most).sum((1, 2))
        shape.append(1 - (common / either.clamp(min=1)).mean())
    away = 1 - F.max_pool2d(world.sprite_alpha(target).gt(0).float(), 9, stride=1, padding=4)[:, :, None]
    seen = away.sum(1, keepdim=True).clamp(min=1)
    mean = (video * away).sum(1, keepdim=True) / seen
    background = ((video - mean).square() * away).flatten(1).sum(1) / (3 * away.flatten(1).sum(1))
    spreads = {"color_spread": torch.stack(color), "shape_spread": torch.stack(shape)}
    return spreads | {"background_spread": background.sqrt()}


def psnr(video: Tensor, truth: Tensor, weight: Tensor | None = None) -> Tensor:
    """[n] dB between clips [n, F, 3, H, W] in 0..1, at most 90; `weight` (0..1) broadcasts against them."""
    squared = (video - truth).square()
    weight = torch.ones(()) if weight is None else weight
    error = (squared * weight).flatten(1).sum(1) / weight.expand_as(squared).flatten(1).sum(1)
    return -10 * error.clamp(min=10 ** (-PSNR_CAP / 10)).log10()


def _motion_errors(sprites: Sprites, truth: Tensor) -> tuple[Tensor, Tensor]:
    """(centroid error, velocity error), each [n] in pixels, against true centroids [n, F, 2]."""
    away = (sprites.centroid - truth).norm(dim=-1).where(sprites.found, torch.tensor(MISSING_CENTROID))
    velocity = []
    for found, centroid, true in zip(sprites.found, sprites.centroid, truth):
        difference = centroid[found].diff(dim=0) - true[found].diff(dim=0)
        velocity.append(difference.abs().mean() if found.sum() >= 3 else torch.tensor(MISSING_VELOCITY))
    return away.mean(1), torch.stack(velocity)


def _attribute_accuracy(sprites: Sprites, clips: Clips) -> dict[str, Tensor]:
    color, shape = sprites.color == clips.color[:, None], sprites.shape == clips.shape[:, None]
    shares = {
        "color_accuracy": color,
        "shape_accuracy": shape,
        "target_accuracy": color & shape,
        "missing": ~sprites.found,
    }
    return {name: right.float().mean(1) for name, right in shares.items()}


# ---- sprites --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sprites:
    """What stands out of the background, for each frame."""

    found: Tensor  # [n, F] bool
    centroid: Tensor  # [n, F, 2] (x, y) in pixels, 0 where none was found
    color: Tensor  # [n, F] index into COLORS, -1 where none was found
    shape: Tensor  # [n, F] index into SHAPES, -1 where none was found or the blob resembles no shape
    value: Tensor  # [n, F, 3] median color in 0..1, 0 where none was found
    blob: Tensor  # [n, F, 40, 40] of 0 and 1, the centroid in the middle; 0 where none was found


def find_sprites(video: Tensor, background: Tensor) -> Sprites:
    """The largest connected blob of each frame that differs from the background.

    Args:
        video: [n, F, 3, 64, 64] in 0..1.
        background: [n, 3, 64, 64] in 0..1.
    """
    import cv2

    n, frames = video.shape[:2]
    differs = ((video - background[:, None]).abs().amax(2) > CONTRAST).byte().numpy()
    found = torch.zeros(n, frames, dtype=torch.bool)
    centroid, median = torch.zeros(n, frames, 2), torch.zeros(n, frames, 3)
    window, area = torch.zeros(n, frames, WINDOW, WINDOW), torch.zeros(n, frames)
    for at in product(range(n), range(frames)):
        _, labels, stats, centers = cv2.connectedComponentsWithStats(differs[at], connectivity=4)
        areas = stats[1:, cv2.CC_STAT_AREA]  # component 0 is the background
        if not len(areas) or areas.max() < SMALLEST:
            continue
        largest = 1 + int(areas.argmax())
        blob = (labels == largest).astype("uint8")
        core = cv2.erode(blob, None)  # 3x3; off the anti-aliased edge
        median[at] = video[at][:, torch.from_numpy(core if core.any() else blob).bool()].median(1).values
        found[at], area[at] = True, float(areas.max())
        centroid[at] = torch.from_numpy(centers[largest]).float() + 0.5  # from pixel indices to pixel_grid's centres
        x, y = centroid[at].round().int().tolist()
        window[at] = F.pad(torch.from_numpy(blob), (WINDOW // 2,) * 4)[y : y + WINDOW, x : x + WINDOW]
    color = torch.cdist(median, world.COLOR_VALUES.expand(n, -1, -1)).argmin(-1)
    shape = _best_shape(window.flatten(0, 1), area.flatten()).view(n, frames)
    none = torch.tensor(-1)
    return Sprites(found, centroid, color.where(found, none), shape.where(found, none), median, window)


def _best_shape(window: Tensor, area: Tensor) -> Tensor:
    """[m] index into SHAPES of blobs [m, WINDOW, WINDOW] that cover `area` pixels in all; -1 where nothing overlaps."""
    shape, template = _templates()
    common = window.flatten(1) @ template.T
    overlap = common / (area[:, None] + template.sum(1) - common)
    best, index = overlap.max(1)
    return shape[index].where(best >= LEAST_OVERLAP, torch.tensor(-1))


@lru_cache(maxsize=1)
def _templates() -> tuple[Tensor, Tensor]:
    """(shape [k], pictures [k, WINDOW^2]) of every sprite with its centroid near the window's centre.

    Radii are those the world draws and a little more; shifts cover the rounding of the window and a ragged edge.
    """
    shifts = torch.arange(-1.5, 1.6, 0.5)
    shape, radius, dx, dy = torch.cartesian_prod(
        torch.arange(len(world.SHAPES)).float(), torch.arange(9, 13.1, 0.5), shifts, shifts
    ).T
    k, middle = len(shape), torch.tensor(world.SIZE / 2)
    zeros = torch.zeros(k, dtype=torch.long)
    clips = Clips(shape.long(), zeros, zeros, zeros, radius, torch.zeros(k, 2), zeros, middle.expand(k, 1, 2))
    offset = _centroids(world.sprite_alpha(clips)) - middle  # a triangle's centroid is not the centre it is drawn at
    center = middle - offset + torch.stack([dx, dy], -1)[:, None]
    alpha = world.sprite_alpha(replace(clips, center=center))[:, 0]
    margin = (world.SIZE - WINDOW) // 2
    return shape.long(), (alpha[:, margin:-margin, margin:-margin] > 0.5).float().flatten(1)


def _centroids(alpha: Tensor) -> Tensor:
    """[n, F, 2] (x, y) in pixels of masks [n, F, H, W]."""
    grid = torch.stack(world.pixel_grid(), -1)
    return torch.einsum("nfhw,hwc->nfc", alpha, grid) / alpha.sum((2, 3))[..., None]


# ---- samples from captions ------------------------------------------------------------------------------------------


def sample_accuracy(video: Tensor, clips: Clips) -> dict[str, Tensor]:
    """How well clips show the captions of `clips`; where they differ from them in path, size or phase does not count.

    The background is the renderer's that best explains the temporal median: colour, pattern, orientation and phase are
    searched, the phase in steps of one pixel. The sprite is judged as in `measure`, against the background found.

    Args:
        video: [n, F, 3, 64, 64] in 0..1, any number of frames.
        clips: whose attributes the captions named.

    Returns:
        One [n] float32 tensor a measure: color_accuracy, shape_accuracy, target_accuracy (both) and missing are shares
        of frames; background_accuracy (its colour) and pattern_accuracy are 0 or 1.

    Raises:
        ValueError: video and clips do not agree in number, or the picture size is not the world's.
    """
    video = _checked(video, clips, frames=video.shape[1:2])
    background = match_background(video)
    return {
        **_attribute_accuracy(find_sprites(video, world.render_background(background)), clips),
        "background_accuracy": (background.background == clips.background).float(),
        "pattern_accuracy": (background.pattern == clips.pattern).float(),
    }


def match_background(video: Tensor) -> Clips:
    """n clips whose background is the best match to that of video [n, F, 3, 64, 64]; their sprites mean nothing.

    The absolute difference forgives the few pixels that a slow sprite covers in half of the frames or more.
    """
    choices, pictures = _backgrounds()
    still = F.avg_pool2d(video.median(1).values, POOL).flatten(1)
    return choices[torch.cdist(still, pictures, p=1).argmin(1)]


@lru_cache(maxsize=1)
def _backgrounds() -> tuple[Clips, Tensor]:
    """(k clips, pictures [k, 3 * 16 * 16]): every background the world draws, phases in steps of one pixel."""
    plain, gradient, striped, checkered = range(len(world.PATTERNS))
    either, orientations, halves, whole = (0, 16), range(3), range(16), range(32)
    kinds = [  # (pattern, orientation, phase x, phase y)
        (plain, 0, 0, 0),
        *product([gradient], orientations, [0], either),
        *product([striped], orientations, halves, [0]),
        *product([checkered], [0], halves, whole),  # half a period in x inverts it, as half a period in y does
    ]
    background, kind = zip(*product(range(len(world.BACKGROUNDS)), kinds))
    background, kind = torch.tensor(background), torch.tensor(kind)
    k, zeros = len(kind), torch.zeros(len(kind), dtype=torch.long)
    clips = Clips(
        shape=zeros,
        color=zeros,
        background=background,
        pattern=kind[:, 0],
        radius=torch.ones(k),
        phase=kind[:, 2:].float(),
        orientation=kind[:, 1],
        center=torch.zeros(k, 1, 2),
    )
    parts = (clips[i : i + 256] for i in range(0, k, 256))
    return clips, torch.cat([F.avg_pool2d(world.render_background(part), POOL).flatten(1) for part in parts])


def _checked(video: Tensor, clips: Clips, frames: Sequence[int] | None = None) -> Tensor:
    """The video as float32 on the CPU, or ValueError."""
    frames = clips.center.shape[1:2] if frames is None else frames
    want = [len(clips), *frames, 3, world.SIZE, world.SIZE]
    if list(video.shape) != want:
        raise ValueError(f"want a video {want} for these clips, got {list(video.shape)}")
    return video.detach().float().cpu()


# ---- reports --------------------------------------------------------------------------------------------------------


def bootstrap_interval(
    values: Tensor | Sequence[float], draws: int = 2000, seed: int = 0, level: float = 0.95
) -> tuple[float, float]:
    """(low, high): the percentile bootstrap interval of the mean of values [n].

    To compare two methods on the same clips, pass the n differences.

    Raises:
        ValueError: values are not one row of at least one number, or level is not between 0 and 1.
    """
    values = torch.as_tensor(values, dtype=torch.float64).cpu()
    if values.ndim != 1 or not len(values):
        raise ValueError(f"want a row of values, got shape {list(values.shape)}")
    if not 0 < level < 1:
        raise ValueError(f"want a level between 0 and 1, got {level}")
    index = torch.randint(len(values), (draws, len(values)), generator=torch.Generator().manual_seed(seed))
    tails = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    low, high = values[index].mean(1).quantile(tails).tolist()
    return low, high


def contact_sheet(
    rows: Sequence[Tensor], path: str | Path, scale: int = 3, labels: Sequence[str] | None = None
) -> None:
    """Writes a PNG with one clip a row, its frames from left to right.

    Args:
        rows: clips [F, 3, H, W] or [F, H, W, 3] in 0..1 of one picture size; their lengths may differ.
        path: its folder is made if need be.
        scale: picture pixels become squares of so many pixels.
        labels: one line of text above each row.

    Raises:
        ValueError: there are no rows, they differ in picture size, or labels do not match them in number.
    """
    from PIL import Image, ImageDraw, ImageFont

    clips = [_channels_last(row) for row in rows]
    if len({clip.shape[1:] for clip in clips}) != 1:
        raise ValueError(f"want clips of one picture size, got {[list(clip.shape) for clip in clips]}")
    if labels is not None and len(labels) != len(clips):
        raise ValueError(f"{len(labels)} labels for {len(clips)} rows")
    height, width = (size * scale for size in clips[0].shape[1:3])
    gap, text = 2, 0 if labels is None else 14
    size = (max(len(clip) for clip in clips) * (width + gap) + gap, len(clips) * (height + text + gap) + gap)
    sheet = Image.new("RGB", size, "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    for i, clip in enumerate(clips):
        top = gap + i * (height + text + gap)
        if labels is not None:
            pen.text((gap, top), labels[i], fill="black", font=font)
        for j, frame in enumerate(clip):
            picture = Image.fromarray((frame * 255).round().byte().numpy()).resize((width, height), Image.NEAREST)
            sheet.paste(picture, (gap + j * (width + gap), top + text))
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)


def _channels_last(clip: Tensor) -> Tensor:
    if clip.ndim != 4 or 3 not in (clip.shape[1], clip.shape[3]):
        raise ValueError(f"want a clip [F, 3, H, W] or [F, H, W, 3], got {list(clip.shape)}")
    clip = clip.detach().float().cpu().clamp(0, 1)
    return clip.permute(0, 2, 3, 1) if clip.shape[1] == 3 else clip
