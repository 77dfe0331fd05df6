"""What a MODEL's sampling says, in the engine's words: noise levels, and the network's output made of its x0.

Core's samplers hold x = x0 + sigma eps for models that predict eps or v, and (1 - sigma) x0 + sigma eps for flow
models; the engine holds signal x0 + noise eps. `calc_cond_batch` gives x0 whatever the network predicts, so everything
here is built on x0.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import comfy.model_sampling as kinds
import comfy.samplers
import torch
from torch import Tensor, nn

from ...engine.schedule import Prediction, Schedule

UNSCALED = getattr(kinds, "V_PREDICTION_DDPM", None)  # newer core has it
FLOW_SPACING = "simple"  # core's own name for the sigmas that flow models are sampled with


@dataclass(frozen=True, eq=False)
class Sampling:
    """The sampling of one MODEL, shift nodes included."""

    model: nn.Module  # core's ModelSampling
    prediction: Prediction
    sigmas: tuple[float, ...] = ()  # [S+1] clean first, that a user brings

    @classmethod
    def of(cls, name: str, model_sampling: nn.Module, sigmas: Tensor | None = None) -> Sampling:
        """ValueError for a kind of sampling that is not known, or sigmas that are no way down to 0."""
        return cls(model_sampling, _prediction(name, model_sampling), () if sigmas is None else _checked(sigmas))

    def schedule(self, steps: int) -> Schedule:
        """The levels of so many steps.

        Flow models: core's sigmas for "simple". Others: evenly spaced timesteps from 1 on, as DDIM has them for Stable
        Diffusion ("leading", offset 1; level 0 is the first timestep's neighbour); to the last one ("trailing") where
        that is pure noise.
        """
        if self.sigmas:
            if steps != len(self.sigmas) - 1:
                raise ValueError(
                    f"the SIGMAS that the model was given have {len(self.sigmas) - 1} steps, and {steps} are asked "
                    "for: set the same number, or disconnect the SIGMAS"
                )
            return self._of_sigmas(self.sigmas)
        if self.prediction == "flow":
            sigmas = comfy.samplers.calculate_sigmas(self.model, FLOW_SPACING, steps).double().flip(0).tolist()
            return self._of_sigmas(sigmas)
        trained = len(self.model.sigmas)
        if not 1 <= steps < trained:
            raise ValueError(f"want 1 to {trained - 1} steps, fewer than this model was trained with; got {steps}")
        if getattr(self.model, "zsnr", False):
            timesteps = [round((i + 1) * trained / steps) - 1 for i in range(steps)]
        else:
            timesteps = [min(i * (trained // steps) + 1, trained - 1) for i in range(steps)]
        levels = self.model.sigmas.double().cpu()[[0, *timesteps]]
        return Schedule.from_alpha_bar(timesteps, (1 / (1 + levels**2)).tolist(), self.prediction)

    def _of_sigmas(self, sigmas: Sequence[float]) -> Schedule:
        if self.prediction == "flow":
            return Schedule.from_sigmas(sigmas)
        alpha_bar = [1 / (1 + s**2) for s in sigmas]
        return Schedule(
            tuple(map(self._timestep, sigmas[1:])),
            tuple(a**0.5 for a in alpha_bar),
            tuple((1 - a) ** 0.5 for a in alpha_bar),
            self.prediction,
        )

    def _timestep(self, sigma: float) -> float:
        """Where in the table a sigma lies, between its entries: `sigma` backwards."""
        table = self.model.log_sigmas.double().cpu()
        at = math.log(sigma)
        above = min(max(int((table < at).sum()), 1), len(table) - 1)
        low, high = table[above - 1].item(), table[above].item()
        return min(max(above - 1 + (at - low) / (high - low), 0.0), float(len(table) - 1))

    def sigma(self, label: float) -> float:
        """The sigma of a level, from what the schedule calls it."""
        return label if self.prediction == "flow" else self.model.sigma(torch.tensor(label)).item()

    def noisy(self, latents: Tensor, sigma: float) -> Tensor:
        """The engine's latents at a level -> core's."""
        return latents if self.as_trained else latents * (1 + sigma**2) ** 0.5

    @property
    def as_trained(self) -> bool:
        """Whether the network is given the latents that it was trained with, and not ones in sigma's space: flow
        models, and CogVideoX, whatever space core's samplers are in."""
        return self.prediction == "flow" or (UNSCALED is not None and isinstance(self.model, UNSCALED))

    def output(self, latents: Tensor, clean: Tensor, sigma: float) -> Tensor:
        """What the network says of the engine's latents at a level, from its x0."""
        x = self.noisy(latents, sigma)
        if self.prediction != "v_prediction":
            return (x - clean) / sigma
        # In float32, as core has it: what is left stands over a sigma that may be small.
        past = torch.tensor(sigma) ** 2 + 1
        root = (past**0.5).item()
        return (x / (root if self.as_trained else past.item()) - clean) * (root / sigma)


def _prediction(name: str, sampling: nn.Module) -> Prediction:
    """The last class that says what is predicted; subclasses of the known ones mean something else."""
    own = [kind for kind in type(sampling).__mro__ if kind.__module__ == kinds.__name__]
    told = [kind for kind in own if "calculate_denoised" in vars(kind)]
    known: dict[type, Prediction] = {
        kinds.EPS: "epsilon",
        kinds.V_PREDICTION: "v_prediction",
        kinds.CONST: "flow",
    }
    if UNSCALED is not None:
        known[UNSCALED] = "v_prediction"
    discrete = hasattr(sampling, "log_sigmas")
    if told and told[0] in known and (discrete or told[0] is kinds.CONST):
        return known[told[0]]
    raise ValueError(
        f"'{name}' is sampled by {told[0].__name__ if told else type(sampling).__name__}, which is not supported: want "
        "a model that predicts eps or v at the timesteps it was trained with, or a flow-matching one"
    )


def _checked(sigmas: Tensor) -> tuple[float, ...]:
    levels = sigmas.detach().double().cpu().flip(0).tolist()
    if len(levels) < 2 or any(a >= b for a, b in itertools.pairwise(levels)) or levels[0] < 0:
        raise ValueError(f"want SIGMAS that fall from noise to 0, at least two of them, got {sigmas.tolist()}")
    return tuple(levels) if levels[0] == 0 else (0.0, *levels)
