"""Measures of clips by analysis against the renderer: no learned judge, so a number says what is in the pixels.

`measure` scores an edit against its exact ground truth. `sample_accuracy` scores clips made from captions alone, where
neither the path nor the background's phase is known. Everything runs on the CPU in float32.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from . import world
from .reading import Sprites, centroids, find_sprites, match_background
from .world import Clips

PSNR_CAP = 90.0  # dB
MISSING_CENTROID = 20.0  # pixels, the error of a frame without a sprite
MISSING_VELOCITY = 8.0  # pixels a frame, the error of a clip with fewer than three sprites


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
    centroid_error, velocity_error = _motion_errors(sprites, centroids(alpha))
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


def _checked(video: Tensor, clips: Clips, frames: Sequence[int] | None = None) -> Tensor:
    """The video as float32 on the CPU, or ValueError."""
    frames = clips.center.shape[1:2] if frames is None else frames
    want = [len(clips), *frames, 3, world.SIZE, world.SIZE]
    if list(video.shape) != want:
        raise ValueError(f"want a video {want} for these clips, got {list(video.shape)}")
    return video.detach().float().cpu()
