"""One mask to masks of the whole clip, forward and backward, with a confidence for every frame.

needs    a segmenter, frames, and the thing's mask at one frame or more
gives    a mask and a confidence for each frame
differs  SAM 2 follows by its own memory. SAM has none: it is asked frame by frame with the box and the middle of the
         last mask, where they were and where they are if the motion goes on, then once more with its own answer; its
         score is then weighed by how alike the color is, because a thing that has left is answered with another
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from ..engine.autograd import ordinary, plain_torch
from ..engine.monitor import SILENT, Monitor
from .ports import Box, Candidates, Point, Prompts, Segmenter
from .segment import check_clip, frame_of, index_of
from .show import overlay

log = logging.getLogger(__name__)
WhenLost = Literal["hold", "empty", "stop"]
MARGIN, LEAST = 0.2, 2.0  # of a box's size, and pixels, on each side: what a thing may move or grow unforeseen
COLOR_SCALE = 0.2  # mean colors that differ by so much are alike by 1/e


@dataclass(frozen=True, eq=False)
class MaskTrack:
    """A thing through a clip."""

    masks: Tensor  # [F, H, W] of 0 and 1
    confidence: tuple[float, ...]  # F numbers in 0..1; 1 where the mask was given
    given: tuple[int, ...]  # frames whose mask was given
    lost: tuple[int, ...]  # frames where it was not found

    @property
    def json(self) -> str:
        numbers = [round(c, 4) for c in self.confidence]
        return json.dumps({"confidence": numbers, "given": self.given, "lost": self.lost})


@plain_torch
def track(
    segmenter: Segmenter,
    frames: Tensor,
    masks: Tensor,
    *,
    at: tuple[int, ...] = (0,),
    min_confidence: float = 0.5,
    when_lost: WhenLost = "hold",
    monitor: Monitor = SILENT,
) -> MaskTrack:
    """Follows a thing from the frames where its mask is known to all others.

    Frames are taken one at a time, and only their masks are kept.

    Args:
        frames: [F, H, W, 3] in 0..1.
        masks: [P, H, W], white from half on, one for each frame in `at`; or [F, H, W], of which those are used.
        min_confidence: under it, a frame counts as lost; a warning names all such frames.
        when_lost: "hold" the last mask that was found, leave the frame's mask "empty", or "stop" with an error.

    Raises:
        ValueError: masks that do not fit the frames or are empty, a frame the clip does not have; with "stop", a lost
            track.
    """
    check_clip(frames)
    if when_lost not in get_args(WhenLost):
        raise ValueError(f"no way '{when_lost}' to treat lost frames: want one of {', '.join(get_args(WhenLost))}")
    given = _given(frames, masks, at)
    found = torch.zeros(frames.shape[:3])
    confidence = [1.0] * len(frames)
    for k, mask in given.items():
        found[k] = mask
    lost, steps = set(), len(frames) - len(given)
    follow = segmenter.follow if segmenter.follows else _Asking(segmenter, min_confidence).follow
    for done, (k, mask, sure) in enumerate(follow(frames, given, monitor)):
        monitor.check()
        confidence[k] = sure
        if sure >= min_confidence and mask.any():
            found[k] = mask
        elif when_lost == "stop":
            raise ValueError(
                f"the track is lost at frame {k} (confidence {sure:.2f}, wanted {min_confidence:g}): give a mask near "
                "it as well, lower min_confidence, or choose what to do when it is lost"
            )
        else:
            lost.add(k)
            if when_lost == "hold":
                found[k] = found[_nearer(k, given)]
        monitor.progress(done + 1, steps, overlay(ordinary(frames[k]), found[k])[None])
    if lost:
        log.warning(
            "Weft: the track is LOST at %d of %d frames (%s); their masks are %s. Give a mask near them as well.",
            len(lost),
            len(frames),
            _ranges(sorted(lost)),
            "the last that was found" if when_lost == "hold" else "empty",
        )
    return MaskTrack(found, tuple(confidence), tuple(given), tuple(sorted(lost)))


def ways(count: int, given: Iterable[int]) -> Iterator[tuple[int, list[int]]]:
    """(a frame whose mask is known, the frames to go through from it): forward from each to the next, and from the
    first one backward."""
    known = sorted(given)
    for start, end in zip(known, [*known[1:], count]):
        yield start, list(range(start + 1, end))
    yield known[0], list(range(known[0] - 1, -1, -1))


def _nearer(k: int, given: dict[int, Tensor]) -> int:
    """The neighbour that a frame was reached from."""
    return k - 1 if k > min(given) else k + 1


def _given(frames: Tensor, masks: Tensor, at: tuple[int, ...]) -> dict[int, Tensor]:
    count, height, width = frames.shape[:3]
    if masks.ndim != 3 or masks.shape[1:] != (height, width):
        raise ValueError(f"the masks are {list(masks.shape)}, the frames {width}x{height}: make them of these frames")
    if bad := [k for k in at if not 0 <= k < count]:
        raise ValueError(f"there is no frame {bad[0]}: the clip has {count}, numbered 0 to {count - 1}")
    if not at or len(masks) not in (len(at), count):
        raise ValueError(f"there are {len(masks)} masks for {len(at)} frames: name the frame of each, as '0, 8'")
    rows = range(len(at)) if len(masks) == len(at) else at
    given = {k: ordinary(masks[i]).float().cpu() >= 0.5 for k, i in sorted(zip(at, rows))}
    if empty := [k for k, mask in given.items() if not mask.any()]:
        raise ValueError(f"the mask of frame {empty[0]} is empty: there is nothing to follow")
    return given


@dataclass(frozen=True)
class _Asking:
    """Follows with a segmenter that has no memory."""

    segmenter: Segmenter
    min_confidence: float

    def follow(self, frames: Tensor, given: dict[int, Tensor], monitor: Monitor):
        for start, order in ways(len(frames), given):
            last, color = given[start], _color(frames[start], given[start])
            motion = (0.0, 0.0)
            for k in order:
                monitor.check()
                frame = frame_of(frames, k)
                mask, sure = self._find(frame, last, motion, color)
                yield k, mask, sure
                if sure >= self.min_confidence and mask.any():
                    before, now = _middle(last), _middle(mask)
                    motion = (now[0] - before[0], now[1] - before[1])
                    last, color = mask, _color(frame, mask)
                else:
                    motion = (0.0, 0.0)  # it is looked for where it was last seen

    def _find(self, frame: Tensor, last: Tensor, motion: Point, color: Tensor) -> tuple[Tensor, float]:
        """(mask, confidence): the best answer of two guesses at the place, and of a second look at the better one."""
        ask, size = self.segmenter.look(frame), tuple(frame.shape[:2])

        def rated(prompts: Prompts) -> tuple[float, Tensor, Tensor]:
            candidates = ask(prompts)
            i = index_of(candidates, prompts)
            mask = candidates.masks[i].cpu()
            return _confidence(candidates, i, frame, mask, color), mask, candidates.raw[i]

        places = [_around(last, shift, size) for shift in dict.fromkeys((motion, (0.0, 0.0)))]
        answers = [rated(Prompts(points=(middle,), box=box)) for box, middle in places]
        sure, mask, raw = max(answers, key=lambda answer: answer[0])
        if mask.any():
            box, middle = _around(mask, (0.0, 0.0), size)
            again = rated(Prompts(points=(middle,), box=box, guess=raw))
            sure, mask, raw = max(again, (sure, mask, raw), key=lambda answer: answer[0])
        return mask, sure


def _confidence(candidates: Candidates, i: int, frame: Tensor, mask: Tensor, color: Tensor) -> float:
    if not mask.any():
        return 0.0
    alike = torch.exp(-(((_color(frame, mask) - color).norm() / COLOR_SCALE) ** 2))
    return candidates.scores[i].clamp(0, 1).item() * alike.item()


def _color(frame: Tensor, mask: Tensor) -> Tensor:
    """[3]: the mean inside a mask."""
    return frame.cpu()[mask].mean(0)


def _around(mask: Tensor, shift: Point, size: tuple[int, int]) -> tuple[Box, Point]:
    """(box with a margin, a point well inside) of a mask [H, W] moved by (x, y), cut to the picture."""
    rows, columns = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
    left, right, top, bottom = (v.item() for v in (columns[0], columns[-1], rows[0], rows[-1]))
    dx, dy = (max(LEAST, MARGIN * (high - low + 1)) for low, high in ((left, right), (top, bottom)))
    x, y = _innermost(mask)

    def inside(x: float, y: float) -> Point:
        return min(max(x + shift[0], 0.0), size[1] - 1.0), min(max(y + shift[1], 0.0), size[0] - 1.0)

    return (*inside(left - dx, top - dy), *inside(right + dx, bottom + dy)), inside(x, y)


def _innermost(mask: Tensor) -> Point:
    """The pixel nearest to the middle among those furthest from the edge: a ring's centroid is not on the ring."""
    import cv2

    bordered = F.pad(mask.to(torch.uint8), (1, 1, 1, 1))  # what is beyond the picture is not the thing
    depth = torch.from_numpy(cv2.distanceTransform(bordered.numpy(), cv2.DIST_C, 3))[1:-1, 1:-1]
    y, x = (depth == depth.max()).nonzero().T.float()
    middle = _middle(mask)
    i = ((x - middle[0]) ** 2 + (y - middle[1]) ** 2).argmin()
    return x[i].item(), y[i].item()


def _middle(mask: Tensor) -> Point:
    y, x = mask.nonzero().T.float()
    return x.mean().item(), y.mean().item()


def _ranges(frames: list[int]) -> str:
    """ "3, 5-7" of 3, 5, 6, 7."""
    runs: list[list[int]] = []
    for k in frames:
        if runs and k == runs[-1][1] + 1:
            runs[-1][1] = k
        else:
            runs.append([k, k])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
