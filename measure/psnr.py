"""Peak signal-to-noise ratio in dB, over all pixels and frames: more is nearer, and what is the same has 90.

psnr_source      how near the edit is to its source; high also for an edit that did nothing
psnr_background  the same outside the mask
psnr_edited      the same inside the mask
psnr_reference   how near the edit is to the wished-for one
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from ..engine.monitor import SILENT, Monitor
from .metric import Clips, Metric

CAP = 90.0


def psnr(
    a: Iterable[Tensor], b: Iterable[Tensor], where: Iterable[Tensor] | None = None, monitor: Monitor = SILENT
) -> float:
    """PSNR of two clips [F, H, W, 3] in 0..1, over the pixels [F, H, W] that `where` marks.

    Raises:
        ValueError: it marks none, or the clips differ in length.
    """
    from torchmetrics.image import PeakSignalNoiseRatio

    ratio = PeakSignalNoiseRatio(data_range=1.0)
    for frame, other, *marked in zip(a, b, strict=True) if where is None else zip(a, b, where, strict=True):
        monitor.check()
        ratio.update(*((values[marked[0]] if marked else values).float().cpu() for values in (frame, other)))
    if not ratio.total:
        raise ValueError("no pixels to compare: the mask covers everything or nothing")
    return min(CAP, ratio.compute().item())


def _to_source(clips: Clips, monitor: Monitor) -> float:
    return psnr(clips.frames("edit"), clips.frames("source"), monitor=monitor)


def _background(clips: Clips, monitor: Monitor) -> float:
    outside = (~inside for inside in clips.inside())
    return psnr(clips.frames("edit"), clips.frames("source"), outside, monitor)


def _edited(clips: Clips, monitor: Monitor) -> float:
    return psnr(clips.frames("edit"), clips.frames("source"), clips.inside(), monitor)


def _to_reference(clips: Clips, monitor: Monitor) -> float:
    return psnr(clips.frames("edit"), clips.frames("reference"), monitor=monitor)


METRICS = (
    Metric("psnr_source", _to_source, unit="dB", digits=2),
    Metric("psnr_background", _background, needs=("mask",), unit="dB", digits=2),
    Metric("psnr_edited", _edited, needs=("mask",), unit="dB", digits=2),
    Metric("psnr_reference", _to_reference, needs=("reference",), unit="dB", digits=2),
)
