"""What a metric is, what it is given, and how several are asked in turn. Frames are [F, H, W, 3] in 0..1."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..engine.monitor import SILENT, Monitor

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Clips:
    """An edit and what it is held against.

    Raises:
        ValueError: they differ in frames or size.
    """

    source: Tensor
    edit: Tensor
    mask: Tensor | None = None  # [F or 1, H, W]: what was edited, from 0.5 on
    reference: Tensor | None = None  # the wished-for edit

    def __post_init__(self):
        want = list(self.source.shape)
        for name in ("source", "edit", "reference"):
            if (clip := getattr(self, name)) is None:
                continue
            if clip.ndim != 4 or clip.shape[-1] != 3 or not len(clip):
                raise ValueError(f"want {name} frames [F, H, W, 3], got {list(clip.shape)}")
            if clip.shape != self.source.shape:
                raise ValueError(
                    f"the {name} is {list(clip.shape)} and the source {want}: compare clips of the same frame count "
                    "and size"
                )
        if (mask := self.mask) is not None and (
            mask.ndim != 3 or list(mask.shape[1:]) != want[1:3] or len(mask) not in (1, want[0])
        ):
            raise ValueError(f"want a mask {want[:3]} or one frame of it, got {list(mask.shape)}")

    def has(self, names: Iterable[str]) -> bool:
        return all(getattr(self, name) is not None for name in names)

    def frames(self, name: str) -> Iterator[Tensor]:
        """One clip's frames [H, W, 3] in float32 on the CPU, one at a time, so that a long clip needs no more memory.

        Raises:
            ValueError: one holds NaN or infinity.
        """
        for k, frame in enumerate(getattr(self, name)):
            yield _finite(frame, f"frame {k} of the {name}")

    def inside(self) -> Iterator[Tensor]:
        """[H, W] bool for each frame: what was edited."""
        for k in range(len(self.source)):
            yield _finite(self.mask[k % len(self.mask)], f"the mask of frame {k}") >= 0.5


def _finite(values: Tensor, name: str) -> Tensor:
    if not torch.isfinite(values).all():
        raise ValueError(f"{name} holds NaN or infinity")
    return values.float().cpu()


@dataclass(frozen=True)
class Metric:
    """One figure of an edit."""

    name: str  # of the figure, as tables and programs know it
    of: Callable[[Clips, Monitor], float]  # ValueError where it cannot be computed; the monitor is checked every frame
    needs: tuple[str, ...] = ()  # what it takes besides source and edit; it is not asked for where that is not given
    unit: str = ""
    digits: int = 4  # behind the point, where it is written for people


@dataclass(frozen=True)
class Figures:
    """What several metrics say of an edit."""

    values: dict[str, float] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)  # name -> why it could not be computed
    text: str = ""  # the same for people, one figure a line

    @property
    def json(self) -> str:
        return json.dumps(self.values | ({"left_out": self.left_out} if self.left_out else {}))


def evaluate(clips: Clips, metrics: Iterable[Metric], monitor: Monitor = SILENT) -> Figures:
    """What each metric says, of those whose needs are given. One that cannot be computed is left out, with a note."""
    asked = [metric for metric in metrics if clips.has(metric.needs)]
    frames = len(clips.source)
    values, left_out, lines = {}, {}, []
    for i, metric in enumerate(asked):
        monitor.check()
        try:
            value = metric.of(clips, _Frames(monitor, i * frames, len(asked) * frames))
            if not math.isfinite(value):
                raise ValueError(f"it comes out as {value}")
            values[metric.name] = value
            lines.append(f"{metric.name:<16} {value:7.{metric.digits}f} {metric.unit}".rstrip())
        except (ValueError, ImportError) as error:
            left_out[metric.name] = _plain(error)
            lines.append(f"{metric.name:<16} left out: {left_out[metric.name]}")
            log.warning("Weft: %s is left out: %s", metric.name, left_out[metric.name])
        monitor.progress((i + 1) * frames, len(asked) * frames)
    return Figures(values, left_out, "\n".join(lines))


@dataclass
class _Frames(Monitor):
    """Shows a metric's progress: it checks once a frame."""

    monitor: Monitor
    done: int
    total: int

    def check(self) -> None:
        self.monitor.check()
        self.done += 1
        self.monitor.progress(min(self.done, self.total), self.total)


def _plain(error: Exception) -> str:
    if isinstance(error, ImportError):
        return f"it needs a package that cannot be imported ({error}): install the pack's requirements.txt"
    return str(error)
