"""What a long run tells the outside world, and how the outside world stops it."""

from __future__ import annotations

from torch import Tensor


class Monitor:
    """Does nothing. A host subclasses it; any method may raise to cancel the run, which then leaves nothing behind."""

    def check(self) -> None:
        """Called inside every inner loop: the place to cancel."""

    def progress(self, done: int, total: int, preview: Tensor | None = None) -> None:
        """`done` of `total` steps are over; `preview` is an estimate of the clean latents [F, C, h, w]."""

    def record(self, **numbers: float) -> None:
        """Figures of the current step, for a log."""


SILENT = Monitor()


class Recording(Monitor):
    """Keeps every record, in order."""

    def __init__(self) -> None:
        self.records: list[dict[str, float]] = []

    def record(self, **numbers: float) -> None:
        self.records.append(numbers)
