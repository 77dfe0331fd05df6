"""The source of an edit: a clip at every noise level. Inverted, every level is kept; noised, two tensors are enough."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

from torch import Tensor

from .schedule import Schedule
from .words import Prompt


class Trajectory(Protocol):
    """The source clip at every noise level, and what it was made with."""

    schedule: Schedule
    prompt: Prompt  # describes the source
    model: str  # fingerprint of the network that it belongs to; "" for any
    convention: str  # how it was made
    beside: Tensor | None  # what the clip has beside its picture: see `engine/beside.py`

    @property
    def shape(self) -> tuple[int, ...]:
        """(F, C, h, w)"""
        ...

    def at(self, level: int) -> Tensor:
        """[F, C, h, w] float32 at a level in 0..S; where it lies is the trajectory's business."""
        ...

    def thinned(self, steps: int) -> Trajectory:
        """Every so many levels of it, for an edit in fewer steps. ValueError: `steps` does not divide its own."""
        ...


class _Shared:
    """What both kinds say of themselves."""

    @property
    def frames(self) -> int:
        return self.shape[0]

    @property
    def noise_std(self) -> float:
        """Standard deviation of the noisiest latents; about 1 if the inversion behaved."""
        return self.at(self.schedule.steps).std().item()


@dataclass(frozen=True, eq=False)
class Inverted(_Shared):
    """A trajectory that was inverted: every level is kept."""

    latents: Tensor  # [S+1, F, C, h, w] as the network sees them, level 0 (clean) first, float32, on the CPU
    schedule: Schedule
    prompt: Prompt
    convention: str
    model: str
    beside: Tensor | None = None

    def __post_init__(self):
        if self.latents.ndim != 5 or len(self.latents) != self.schedule.steps + 1:
            raise ValueError(
                f"a trajectory of {self.schedule.steps} steps wants latents [{self.schedule.steps + 1}, F, C, h, w], "
                f"got {list(self.latents.shape)}"
            )

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.latents.shape[1:])

    def at(self, level: int) -> Tensor:
        return self.latents[level]

    def thinned(self, steps: int) -> Inverted:
        schedule = self.schedule.thinned(steps)
        return replace(self, latents=self.latents[:: self.schedule.steps // steps].clone(), schedule=schedule)


@dataclass(frozen=True, eq=False)
class Noised(_Shared):
    """A clip with one fixed noise on it: level k is signal_k clean + noise_k eps."""

    clean: Tensor  # [F, C, h, w] as the network sees them, float32
    eps: Tensor  # the same shape, or one that expands to it
    schedule: Schedule
    prompt: Prompt
    convention: str = "add_noise"
    model: str = ""  # any network of this schedule may start here
    beside: Tensor | None = None

    def __post_init__(self):
        sizes = zip(reversed(self.eps.shape), reversed(self.clean.shape))
        if self.clean.ndim != 4 or self.eps.ndim > 4 or any(n not in (1, want) for n, want in sizes):
            raise ValueError(
                f"want latents [F, C, h, w] and noise for them, got {list(self.clean.shape)} and {list(self.eps.shape)}"
            )

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.clean.shape)

    def at(self, level: int) -> Tensor:
        return self.schedule.noised(self.clean, self.eps, level) if level else self.clean

    def thinned(self, steps: int) -> Noised:
        return replace(self, schedule=self.schedule.thinned(steps))
