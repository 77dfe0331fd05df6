"""A text to boxes.

needs    a detector that reads text (Grounding DINO, Liu et al. 2023; OWLv2, Minderer et al. 2023), frames
gives    boxes at the frames that were asked about, best first
"""

from __future__ import annotations

import json
import logging
import re
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from ..engine.autograd import plain_torch
from ..engine.monitor import SILENT, Monitor
from .ports import Detection, Detector
from .prompts import write_boxes
from .segment import check_clip, frame_of
from .show import drawn

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Found:
    """What a text was found to mean."""

    at: dict[int, tuple[Detection, ...]]  # frame -> at least one, best first
    pictures: Tensor  # [P, H, W, 3] in 0..1: the frames with the boxes on them

    @property
    def boxes(self) -> str:
        """As `read_prompts` reads them."""
        return write_boxes({k: [d.box for d in found] for k, found in self.at.items()})

    @property
    def json(self) -> str:
        return json.dumps([{"frame": k, **asdict(d)} for k, found in self.at.items() for d in found])


@plain_torch
def find(
    detector: Detector,
    frames: Tensor,
    text: str,
    *,
    at: tuple[int, ...] = (0,),
    threshold: float = 0.25,
    top: int = 1,
    monitor: Monitor = SILENT,
) -> Found:
    """Boxes around what a text names.

    Args:
        frames: [F, H, W, 3] in 0..1.
        text: one phrase, or several separated by commas, periods or lines.
        at: the frames to look at; those where nothing is found are left out, with a warning.
        threshold: the least score of a box, 0..1.
        top: the most boxes of a frame; 0 for all.

    Raises:
        ValueError: no text, or nothing is found in any of the frames.
    """
    check_clip(frames)
    phrases = tuple(phrase for part in re.split(r"[,.;\n]", text.lower()) if (phrase := " ".join(part.split())))
    if not phrases:
        raise ValueError("no text: name what to find, as 'a dog'")
    if not 0 <= threshold <= 1 or top < 0:
        raise ValueError(f"want a threshold in 0..1 and a top of 0 or more, got {threshold:g} and {top}")
    found, best, pictures = {}, 0.0, []
    for done, k in enumerate(at):
        monitor.check()
        frame = frame_of(frames, k)
        seen, score = detector.find(frame, phrases, threshold)
        best = max(best, score)
        if kept := tuple(_into(d, frame) for d in sorted(seen, key=lambda d: -d.score))[: top or None]:
            found[k] = kept
            pictures.append(drawn(frame, [d.box for d in reversed(kept)]))  # the best on top
        monitor.progress(done + 1, len(at))
    if not found:
        raise ValueError(
            f"{detector.name} finds no '{', '.join(phrases)}' in {_frames(at)}: its best score is {best:.2f} and the "
            f"threshold {threshold:g}; lower it, try other words, or look at other frames"
        )
    if missing := [k for k in at if k not in found]:
        log.warning("Weft: no '%s' found in %s; they are left out", ", ".join(phrases), _frames(missing))
    return Found(found, torch.stack(pictures))


def _into(detection: Detection, frame: Tensor) -> Detection:
    """With its box cut to the picture, and at least one pixel large."""
    height, width = frame.shape[:2]
    left, top, right, bottom = detection.box
    left, top = min(max(left, 0.0), width - 1.0), min(max(top, 0.0), height - 1.0)
    right, bottom = min(max(right, left + 1), float(width)), min(max(bottom, top + 1), float(height))
    return Detection((left, top, right, bottom), detection.score, detection.label)


def _frames(at) -> str:
    shown = ", ".join(str(k) for k in at[:8]) + (", ..." if len(at) > 8 else "")
    return f"frame{'s' if len(at) > 1 else ''} {shown}"
