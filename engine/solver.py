"""How a step moves the latent. The loop in `edit` evaluates, controls act on what it evaluates, a solver does the rest.

`DDIM` samples from the source's noise: for flow models the same step is Euler's. The coupled flow, which needs no
inversion, is a `Solver` of `methods/`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

from torch import Tensor

from .schedule import Schedule
from .source import Trajectory
from .words import Model


@dataclass(frozen=True, eq=False)
class Seen:
    """What one evaluation of a step came to."""

    source: Trajectory  # in the noise that it was evaluated in
    latents: Tensor  # [F, C, h, w] of the edit that were evaluated
    guided: Tensor  # [F, C, h, w] the network's output for them, after guidance
    source_output: Tensor | None  # the same for the source, if the solver asked for it


class Solver(Protocol):
    """One way through the noise levels, from the first, noisiest to clean."""

    draws: int  # evaluations of a step, whose outcome is averaged
    source_guidance: float | None  # guidance of the source, if its output is wanted

    def check(self, source: Trajectory, model: Model) -> None:
        """ValueError, before anything runs, for what cannot be solved so."""
        ...

    def levels(self, schedule: Schedule) -> Sequence[int]:
        """The levels that are evaluated, in order."""
        ...

    def begin(self, source: Trajectory) -> Tensor:
        """[F, C, h, w] of the edit before the first step."""
        ...

    def look(self, z: Tensor, source: Trajectory, level: int, draw: int, seed: int) -> tuple[Trajectory, Tensor]:
        """(the source in this draw's noise, the edit's latents at `level`) to evaluate."""
        ...

    def advance(self, z: Tensor, source: Trajectory, level: int, seen: Sequence[Seen], cover: Tensor | None) -> Tensor:
        """The edit after a step, from one `Seen` a draw.

        Args:
            cover: [F or 1, 1, h, w] in 0..1, how far each cell is edited; None: all of it. The rest is the source.
        """
        ...

    def after(self, level: int) -> int:
        """The level that `advance` leaves the edit at."""
        ...


@dataclass(frozen=True)
class DDIM:
    """The deterministic sampler, eta = 0 (Song et al. 2021), with the steps and schedule of the source's trajectory."""

    draws: ClassVar[int] = 1
    source_guidance: ClassVar[float | None] = None

    def check(self, source: Trajectory, model: Model) -> None:
        pass

    def levels(self, schedule: Schedule) -> Sequence[int]:
        return range(schedule.steps, 0, -1)

    def begin(self, source: Trajectory) -> Tensor:
        return source.at(source.schedule.steps)

    def look(self, z: Tensor, source: Trajectory, level: int, draw: int, seed: int) -> tuple[Trajectory, Tensor]:
        return source, z

    def advance(self, z: Tensor, source: Trajectory, level: int, seen: Sequence[Seen], cover: Tensor | None) -> Tensor:
        (only,) = seen
        z = source.schedule.step(only.latents, only.guided, level, level - 1)
        return z if cover is None else source.at(level - 1).to(z).lerp(z, cover)

    def after(self, level: int) -> int:
        return level - 1
