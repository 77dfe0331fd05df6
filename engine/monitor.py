"""What a long run tells the outside world, and how the outside world stops it."""

from __future__ import annotations

from torch import Tensor


class Monitor:
    """Does nothing. A host subclasses it; any method may raise to cancel the run, which then leaves nothing behind."""

    def check(self) -> None:
        """Called inside every inner loop: the place to cancel."""

    def progress(self, done: int, total: int, preview: Tensor | None = None) -> None:
        """`done` of `total` steps are over; `preview` is an estimate of the clean latents [F, C, h, w]."""

    def record(self, **numbers: float | Tensor) -> None:
        """Figures of the current step, for a log. A tensor of one number may still be on its way from a GPU: who reads
        it before the step is over keeps the next launches waiting."""


SILENT = Monitor()


class Recording(Monitor):
    """Keeps every record, in order."""

    def __init__(self) -> None:
        self._told: list[dict[str, float | Tensor]] = []

    def record(self, **numbers: float | Tensor) -> None:
        self._told.append(numbers)

    @property
    def records(self) -> list[dict[str, float]]:
        """All so far, as numbers."""
        self._told = [{k: v.item() if isinstance(v, Tensor) else v for k, v in told.items()} for told in self._told]
        return self._told
