"""Structural similarity, the mean over frames: 1 is the same. It minds shapes and edges more than brightness.

paper    Wang et al. 2004, "Image Quality Assessment: From Error Visibility to Structural Similarity"

ssim_source     how like its source the edit is built; high also for an edit that did nothing
ssim_reference  how like the wished-for edit
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from ..engine.monitor import SILENT, Monitor
from .metric import Clips, Metric

WINDOW = 11  # pixels, of the paper's Gaussian window


def ssim(a: Iterable[Tensor], b: Iterable[Tensor], monitor: Monitor = SILENT) -> float:
    """SSIM of two clips [F, H, W, 3] in 0..1.

    Raises:
        ValueError: the pictures are smaller than its window, or the clips differ in length.
    """
    from torchmetrics.image import StructuralSimilarityIndexMeasure

    similarity = StructuralSimilarityIndexMeasure(data_range=1.0)
    for frame, other in zip(a, b, strict=True):
        monitor.check()
        height, width = frame.shape[:2]
        if min(height, width) < WINDOW:
            raise ValueError(f"its window is {WINDOW}x{WINDOW} pixels, and the pictures are {width}x{height}")
        similarity.update(*(values.float().cpu().movedim(-1, 0)[None] for values in (frame, other)))
    return similarity.compute().item()


def _to_source(clips: Clips, monitor: Monitor) -> float:
    return ssim(clips.frames("edit"), clips.frames("source"), monitor)


def _to_reference(clips: Clips, monitor: Monitor) -> float:
    return ssim(clips.frames("edit"), clips.frames("reference"), monitor)


METRICS = (
    Metric("ssim_source", _to_source),
    Metric("ssim_reference", _to_reference, needs=("reference",)),
)
