"""How much a clip changes from frame to frame, in 0..1: motion counts as well as flicker, so compare the two figures.

flicker_source, flicker_edit  mean absolute difference of neighbouring frames
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from itertools import pairwise

from torch import Tensor

from ..engine.monitor import SILENT, Monitor
from .metric import Clips, Metric


def flicker(frames: Iterable[Tensor], monitor: Monitor = SILENT) -> float:
    """Of a clip [F, H, W, 3] in 0..1; 0 for a single frame."""
    changes = []
    for frame, after in pairwise(frames):
        monitor.check()
        changes.append((after - frame).abs().mean().item())
    return sum(changes) / max(1, len(changes))


def _of(name: str, clips: Clips, monitor: Monitor) -> float:
    return flicker(clips.frames(name), monitor)


METRICS = tuple(Metric(f"flicker_{name}", partial(_of, name)) for name in ("source", "edit"))
