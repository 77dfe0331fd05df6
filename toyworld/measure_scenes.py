"""Measures of scenes of several sprites, by analysis against the renderer as in `measure`.

The two sprites of a scene never have the same color, so a thing is what has one of the six colors. Where one sprite
hides another, its outline is not its own: shape and place are judged in the frames where it is in full sight.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from . import scenes, world
from .measure import MISSING_CENTROID, psnr
from .reading import CONTRAST, SMALLEST, best_shape, centroids, match_background, windows
from .scenes import Scenes

IN_SIGHT = 0.95  # share of a sprite that is seen, from which on its shape is judged
FAR = 0.35  # a pixel that is further from each of the six colors, over the three channels, is none of them


@dataclass(frozen=True)
class Things:
    """What stands out of the background in each frame, for each of the six colors."""

    found: Tensor  # [n, F, 6] bool
    blob: Tensor  # [n, F, 6, H, W] bool


def find_things(video: Tensor, background: Tensor) -> Things:
    """All that has each of the colors in each frame, less what is thinner than 3 pixels, such as a blurred rim.

    Args:
        video: [n, F, 3, 64, 64] in 0..1.
        background: [n, 3, 64, 64] in 0..1.
    """
    import cv2

    n, frames = video.shape[:2]
    square = cv2.getStructuringElement(cv2.MORPH_RECT, (3, 3))
    pixels = video.movedim(2, -1)[..., None, :]
    distance, color = (pixels - world.COLOR_VALUES).norm(dim=-1).min(-1)
    differs = ((video - background[:, None]).abs().amax(2) > CONTRAST) & (distance < FAR)
    blob = torch.zeros(n, frames, len(world.COLORS), *video.shape[-2:], dtype=torch.bool)
    for i, f, c in torch.cartesian_prod(*(torch.arange(k) for k in blob.shape[:3])).tolist():
        of_color = (differs[i, f] & (color[i, f] == c)).byte().numpy()
        if of_color.sum() < SMALLEST:
            continue
        opened = cv2.morphologyEx(of_color, cv2.MORPH_OPEN, square)
        if opened.sum() >= SMALLEST:
            blob[i, f, c] = torch.from_numpy(opened).bool()
    return Things(blob.flatten(3).any(3), blob)


def measure_scenes(video: Tensor, source: Scenes, target: Scenes) -> dict[str, Tensor]:
    """How well edited scenes show their target.

    Args:
        video: [n, F, 3, 64, 64] in 0..1, the edited scenes.
        source: the n scenes before the edit.
        target: the n scenes the edit should give.

    Returns:
        One [n] float32 tensor a measure:
        psnr_truth, psnr_source: dB to the rendered target and source, at most 90.
        psnr_same: dB to the truth over the pixels more than 2 px away from all that the edit changes, at most 90.
        count_right: share of frames with as many things as the truth has.
        color_accuracy: mean over the sprites that the truth shows in a frame of whether a thing has that
            color; where there is none, whether nothing is there.
        shape_accuracy: the same of that thing's shape, over the sprites in full sight; a missing one is wrong.
        centroid_error_px: mean distance of these sprites' things from where they should be; a missing one counts 20.
        The last two are NaN where no sprite is ever in full sight.

    Raises:
        ValueError: video, source and target do not agree in number, frames or picture size.
    """
    want = [len(target), target.center.shape[2], 3, world.SIZE, world.SIZE]
    if list(video.shape) != want or source.center.shape != target.center.shape:
        raise ValueError(f"want a video {want} and a source alike, got {list(video.shape)} and {len(source)} scenes")
    video = video.detach().float().cpu()
    (truth, seen), (before, _) = scenes.render(target), scenes.render(source)
    changed = F.max_pool2d((truth != before).any(2).float(), 5, stride=1, padding=2)
    ground = world.render_background(target.sprite(0))
    return {
        "psnr_truth": psnr(video, truth),
        "psnr_source": psnr(video, before),
        "psnr_same": psnr(video, truth, 1 - changed[:, :, None]),
        **_attributes(find_things(video, ground), find_things(truth, ground), target, seen),
    }


def scene_accuracy(video: Tensor, drawn: Scenes) -> dict[str, Tensor]:
    """How well clips show the captions of `drawn`, wherever in the picture they show it.

    Returns:
        One [n] float32 tensor a measure: count_right (share of frames with as many things as were named),
        color_accuracy (the share of the named colors that are there; where nothing was named, whether nothing is),
        shape_accuracy (of the named sprites, in frames where no thing touches another; NaN if there are none),
        background_accuracy and pattern_accuracy.
    """
    video = video.detach().float().cpu()
    background = match_background(video)
    things = find_things(video, world.render_background(background))
    named = drawn.shown[:, None].expand(-1, video.shape[1], -1)
    grown = F.max_pool2d(things.blob.flatten(0, 1).float(), 5, stride=1, padding=2).sum(1).amax((1, 2))
    apart = (grown < 2).view(video.shape[:2])
    found, shape, _ = _looks(things, drawn)
    return {
        "count_right": (things.found.sum(2) == drawn.count[:, None]).float().mean(1),
        "color_accuracy": _share(found, named, otherwise=~things.found.any(2)),
        "shape_accuracy": _mean((shape == drawn.shape[:, None]).float(), named & apart[..., None]),
        "background_accuracy": (background.background == drawn.background).float(),
        "pattern_accuracy": (background.pattern == drawn.pattern).float(),
    }


def _attributes(things: Things, true: Things, target: Scenes, visible: Tensor) -> dict[str, Tensor]:
    whole = scenes.whole(target)
    seen, _, _ = _looks(true, target)
    full = seen & (visible.sum((3, 4)) >= IN_SIGHT * whole.sum((3, 4))).transpose(1, 2)
    found, shape, place = _looks(things, target)
    truth = centroids(whole.clamp(min=1e-9).flatten(0, 1)).unflatten(0, whole.shape[:2]).transpose(1, 2)
    away = torch.where(found, (place - truth).norm(dim=-1), MISSING_CENTROID)
    return {
        "count_right": (things.found.sum(2) == true.found.sum(2)).float().mean(1),
        "color_accuracy": _share(found, seen, otherwise=~things.found.any(2)),
        "shape_accuracy": _mean((shape == target.shape[:, None]).float(), full),
        "centroid_error_px": _mean(away, full),
    }


def _looks(things: Things, drawn: Scenes) -> tuple[Tensor, Tensor, Tensor]:
    """Of each sprite: (whether it is shown and a thing has its color, that thing's shape or -1, its centroid)."""
    n, frames = things.found.shape[:2]
    index = drawn.color[:, None].expand(n, frames, -1)
    found = things.found.gather(2, index) & drawn.shown[:, None]
    blob = things.blob.gather(2, index[..., None, None].expand(-1, -1, -1, *things.blob.shape[3:])).float()
    place = centroids(blob.flatten(0, 1).clamp(min=1e-9)).unflatten(0, (n, frames))
    flat = blob.flatten(0, 2)
    shape = best_shape(windows(flat, place.flatten(0, 2)), flat.sum((1, 2))).view(found.shape)
    return found, torch.where(found, shape, -1), place


def _share(right: Tensor, counted: Tensor, otherwise: Tensor) -> Tensor:
    """[n]: the mean over frames of the share of `counted` [n, F, 2] that is `right`; `otherwise` [n, F] if none is."""
    number = counted.sum(2)
    return torch.where(number > 0, (right & counted).sum(2) / number.clamp(min=1), otherwise.float()).mean(1)


def _mean(values: Tensor, counted: Tensor) -> Tensor:
    """[n]: the mean of the values [n, F, 2] that are counted, NaN where none is."""
    return (values * counted).flatten(1).sum(1) / counted.flatten(1).sum(1)
