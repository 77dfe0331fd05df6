"""Noise levels and the deterministic steps between them (DDIM, Song et al. 2021, eta = 0), and their inverse.

At level k the latent is x_k = signal_k * clean + noise_k * eps. A network's output is turned into (clean, eps) here
and nowhere else. Both are linear in x and in the output, so a step between any two levels is A x + B output, and its
exact inverse for a given output is (y - B output) / A. Nothing here assumes a table of alphas: a flow-matching model
is another pair of signal and noise and another row in `_SPLIT`.

Flow coordinates make all of them alike: y = x / (signal + noise), s = noise / (signal + noise), u = eps - clean. In
them every step here is an Euler step of a flow, y' = y + (s' - s) u.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor

Prediction = Literal["epsilon", "v_prediction", "flow"]

# What the network gives, as (clean from x, clean from output, eps from x, eps from output), for signal s and noise n.
_SPLIT = {
    "epsilon": lambda s, n: (1 / s, -n / s, 0.0, 1.0),
    "v_prediction": lambda s, n: (s, -n, n, s),
    "flow": lambda s, n: (1.0, -n, 1.0, s),  # eps - clean, where signal + noise is 1
}


@dataclass(frozen=True)
class Schedule:
    """S steps between S + 1 noise levels; level 0 is clean."""

    timesteps: tuple[float, ...]  # [S] label of levels 1..S, rising: what the network is told
    signal: tuple[float, ...]  # [S+1]
    noise: tuple[float, ...]  # [S+1]
    prediction: Prediction

    def __post_init__(self):
        if self.prediction not in _SPLIT:
            raise ValueError(f"prediction type '{self.prediction}' is not supported: want one of {list(_SPLIT)}")
        if not len(self.timesteps) + 1 == len(self.signal) == len(self.noise) or not self.timesteps:
            raise ValueError(
                f"want S >= 1 timesteps and S + 1 levels, got {len(self.timesteps)}, {len(self.signal)}, "
                f"{len(self.noise)}"
            )
        if falls := [(a, b) for a, b in zip(self.timesteps, self.timesteps[1:]) if a >= b]:
            raise ValueError(
                f"{self.steps} steps are more than this model has noise levels for: timestep {falls[0][0]:g} is "
                f"followed by {falls[0][1]:g}, and they must rise; use fewer steps"
            )
        if self.prediction == "epsilon" and min(self.signal) <= 0:
            raise ValueError("a model that predicts epsilon cannot start from pure noise (alpha-bar 0): use v")
        if self.prediction == "flow" and any(abs(s + n - 1) > 1e-4 for s, n in zip(self.signal, self.noise)):
            raise ValueError("a flow model's signal and noise add up to 1 at every level: these do not")

    @classmethod
    def from_alpha_bar(cls, timesteps: Sequence[int], alpha_bar: Sequence[float], prediction: Prediction) -> Schedule:
        """From rising timesteps [S] and alpha-bar [S+1] of the levels, clean first."""
        return cls(
            tuple(float(t) for t in timesteps),
            tuple(float(a) ** 0.5 for a in alpha_bar),
            tuple((1 - float(a)) ** 0.5 for a in alpha_bar),
            prediction,
        )

    @classmethod
    def from_sigmas(cls, sigmas: Sequence[float]) -> Schedule:
        """Of a flow model: the noise [S+1] of the levels, clean first; the network is told it as it is."""
        levels = tuple(float(s) for s in sigmas)
        return cls(levels[1:], tuple(1 - s for s in levels), levels, "flow")

    @property
    def steps(self) -> int:
        return len(self.timesteps)

    def flow(self, level: int) -> tuple[float, float]:
        """(s, signal + noise) of a level: its noise in flow coordinates, and what x is divided by."""
        size = self.signal[level] + self.noise[level]
        return self.noise[level] / size, size

    def velocity(self, latents: Tensor, output: Tensor, level: int) -> Tensor:
        """u = eps - clean, from latents at `level` and the network's output there."""
        clean, eps = self.split(latents, output, level)
        return eps - clean

    def thinned(self, steps: int) -> Schedule:
        """The same noise, clean to noisiest, in fewer steps.

        Raises:
            ValueError: not every so many levels can be kept.
        """
        if not 1 <= steps <= self.steps or self.steps % steps:
            raise ValueError(f"{self.steps} steps cannot be thinned to {steps}: want a number that divides them")
        every = self.steps // steps
        return replace(
            self,
            timesteps=self.timesteps[every - 1 :: every],
            signal=self.signal[::every],
            noise=self.noise[::every],
        )

    def label(self, level: int) -> float:
        """The timestep the network is told at a level in 1..S."""
        return self.timesteps[level - 1]

    def split(self, latents: Tensor, output: Tensor, level: int) -> tuple[Tensor, Tensor]:
        """(clean, eps) from latents at `level` and the network's output there."""
        clean_x, clean_out, eps_x, eps_out = _SPLIT[self.prediction](self.signal[level], self.noise[level])
        return clean_x * latents + clean_out * output, eps_x * latents + eps_out * output

    def noised(self, clean: Tensor, eps: Tensor, level: int) -> Tensor:
        """Latents at a level, from clean ones and noise."""
        return self.signal[level] * clean + self.noise[level] * eps

    def answer(self, clean: Tensor, eps: Tensor, level: int) -> Tensor:
        """What the network should say at a level in 1..S, given both: `split` backwards."""
        clean_x, clean_out, _, _ = _SPLIT[self.prediction](self.signal[level], self.noise[level])
        return (clean - clean_x * self.noised(clean, eps, level)) / clean_out

    def step(self, latents: Tensor, output: Tensor, start: int, end: int) -> Tensor:
        """Latents at level `end`, from those at `start` and the network's output, read as given at `start`."""
        a, b = self._coefficients(start, end)
        return a * latents + b * output

    def unstep(self, latents: Tensor, output: Tensor, start: int, end: int) -> Tensor:
        """The latents at `start` that `step(..., output, start, end)` takes to `latents`: its exact inverse."""
        a, b = self._coefficients(start, end)
        if abs(a) < 1e-6:
            raise ValueError(f"one step from level {start} to {end} forgets the latent: invert with more steps")
        return (latents - b * output) / a

    def _coefficients(self, start: int, end: int) -> tuple[float, float]:
        clean_x, clean_out, eps_x, eps_out = _SPLIT[self.prediction](self.signal[start], self.noise[start])
        s, n = self.signal[end], self.noise[end]
        return s * clean_x + n * eps_x, s * clean_out + n * eps_out
