"""A clip made to fit a model, and an edit put back into the clip it came from.

needs    a clip, and what a model takes: sizes that some number divides, frame counts such as 4k + 1
gives    the clip to edit, and a `Fit` that knows the way back
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from ..engine.words import Layout

Way = Literal["crop", "pad"]
Rule = Literal["any", "4k+1", "8k+1"]


@dataclass(frozen=True)
class Fit:
    """What was done to a clip of `size`, in pixels: scaled to `scaled`, then cut or padded to `fitted`."""

    frames: tuple[int, ...]  # of the clip, that were taken, in order
    size: tuple[int, int]  # (height, width)
    scaled: tuple[int, int]
    fitted: tuple[int, int]
    way: Way
    added: int = 0  # frames at the end that repeat the last one

    @property
    def corner(self) -> tuple[int, int]:
        """(top, left) of what was kept, in the scaled picture; where it is padded, of the picture in what is fitted."""
        return tuple(abs(a - b) // 2 for a, b in zip(self.scaled, self.fitted))


def prepare(
    clip: Tensor,
    *,
    start: int = 0,
    frames: int = 0,
    every: int = 1,
    side: int = 0,
    multiple: int = 8,
    way: Way = "crop",
    rule: Rule = "any",
    takes: Layout | None = None,
) -> tuple[Tensor, Fit]:
    """The part of a clip [F, H, W, 3] that a model will edit, and how to bring it back.

    Args:
        start: the first frame taken.
        frames: the most that are taken; 0: all.
        every: one frame of so many.
        side: the longer side in pixels, kept in proportion; 0: as it is.
        multiple: what must divide height and width.
        way: "crop" cuts the edges off to fit, "pad" repeats the last pixels.
        rule: frame counts the model takes; frames over that are left out at the end.
        takes: what a model takes, instead of `multiple` and `rule`; "pad" then repeats the last frame too, up to the
            next count that it takes.

    Raises:
        ValueError: a number out of range, or nothing is left.
    """
    if way not in get_args(Way) or rule not in get_args(Rule):
        raise ValueError(f"want crop or pad and one of {', '.join(get_args(Rule))}, got '{way}' and '{rule}'")
    if not 0 <= start < len(clip) or frames < 0 or every < 1 or side < 0 or multiple < 1:
        raise ValueError(
            f"want a start in the clip's {len(clip)} frames, no negative number, and steps of 1 or more; got start "
            f"{start}, frames {frames}, every {every}, side {side}, multiple {multiple}"
        )
    taken = tuple(range(start, len(clip), every))[: frames or None]
    layout = takes or (Layout(multiple) if rule == "any" else Layout(multiple, int(rule[0]), True))
    added = layout.filled(len(taken)) - len(taken) if takes and way == "pad" else 0
    taken = taken if added else taken[: layout.fitting(len(taken))]
    height, width = clip.shape[1:3]
    share = side / max(height, width) if side else 1.0
    scaled = tuple(max(1, round(n * share)) for n in (height, width))
    fitted = tuple(_fitted(n, layout.pixels, way) for n in scaled)
    fit = Fit(taken, (height, width), scaled, fitted, way, added)
    return _reframed(_resized(clip[[*taken, *taken[-1:] * added]], scaled), fit), fit


def restore(edit: Tensor, clip: Tensor, fit: Fit) -> Tensor:
    """The clip [F, H, W, 3] with the edit in the place that was taken from it: what was cut off is the clip's own.

    Raises:
        ValueError: an edit of another size or frame count than was prepared, or another clip.
    """
    if tuple(edit.shape[:3]) != (len(fit.frames) + fit.added, *fit.fitted):
        count = len(fit.frames) + fit.added
        raise ValueError(
            f"the prepared clip has {count} frames of {fit.fitted[1]}x{fit.fitted[0]}, and this edit "
            f"{edit.shape[0]} of {edit.shape[2]}x{edit.shape[1]}: connect the edit of what Prepare Clip gave"
        )
    if tuple(clip.shape[1:3]) != fit.size or len(clip) <= fit.frames[-1]:
        raise ValueError("this is not the clip that was prepared: connect the one that went into Prepare Clip")
    edit = edit[: len(fit.frames)]
    (top, left), (height, width) = fit.corner, fit.scaled
    whole = _resized(clip[list(fit.frames)], fit.scaled).clone()
    if fit.way == "pad":
        whole = edit[:, top : top + height, left : left + width]
    else:
        whole[:, top : top + fit.fitted[0], left : left + fit.fitted[1]] = edit
    restored = _resized(whole, fit.size)
    if fit.way == "crop" and fit.scaled == fit.size:
        return restored
    kept = torch.ones(1, *fit.scaled, 1) if fit.way == "pad" else torch.zeros(1, *fit.scaled, 1)
    kept[:, top : top + fit.fitted[0], left : left + fit.fitted[1]] = 1
    return torch.lerp(clip[list(fit.frames)].float(), restored, _resized(kept, fit.size))


def _fitted(size: int, multiple: int, way: Way) -> int:
    fitted = -(-size // multiple) * multiple if way == "pad" else size // multiple * multiple
    if not fitted:
        raise ValueError(f"a side of {size} pixels is less than {multiple}: choose a larger side, or pad")
    return fitted


def _reframed(frames: Tensor, fit: Fit) -> Tensor:
    (top, left), (height, width) = fit.corner, fit.fitted
    if fit.way == "crop":
        return frames[:, top : top + height, left : left + width].contiguous()
    below, right = height - fit.scaled[0] - top, width - fit.scaled[1] - left
    return F.pad(frames.movedim(-1, 1), (left, right, top, below), mode="replicate").movedim(1, -1).contiguous()


def _resized(frames: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(frames.shape[1:3]) == tuple(size):
        return frames.float()
    smaller = size[0] * size[1] < frames.shape[1] * frames.shape[2]
    how = {"mode": "area"} if smaller else {"mode": "bilinear", "align_corners": False}
    return F.interpolate(frames.float().movedim(-1, 1), size, **how).movedim(1, -1)
