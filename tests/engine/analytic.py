"""A backbone whose perfect denoiser is known in closed form, so that the loops can be tested without a network."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from weft.backbones.diffusers.parts import make_schedule
from weft.backbones.diffusers.text import prompt_of
from weft.engine.plan import PLAIN
from weft.engine.ports import Backbone
from weft.engine.schedule import Schedule
from weft.engine.words import Layout
from weft.tests.tiny import SCHEDULER


class Gaussian(Backbone):
    """Clips whose values are independent Gaussians: mean from the prompt, standard deviations from 0.1 to 1.5."""

    def __init__(self, **scheduler):
        """
        Args:
            scheduler: over SCHEDULER; with prediction_type "flow" it is a flow model, and there is no more to say.
        """
        super().__init__("gaussian", GaussianDenoiser(**scheduler), GaussianCodec(), GaussianText())

    def sample(self, frames: int = 3, mean: float = 0.0) -> Tensor:
        """A clip as it travels on a wire."""
        return self.codec.unscale(mean + self.denoiser.deviation * torch.randn(frames, 4, 6, 10))

    @property
    def evaluations(self) -> list:
        """All that was evaluated."""
        return self.denoiser.evaluations

    @property
    def reserved(self) -> list[int]:
        """The bytes that each session asked for."""
        return self.denoiser.reserved


class GaussianDenoiser:
    """See `Denoiser`.

    At signal s and noise n the best guess of the noise is n (x - s mean) / (s^2 variance + n^2), and of the clip
    mean + s variance (x - s mean) / (s^2 variance + n^2).
    """

    name, fingerprint, device = "gaussian", "gaussian", torch.device("cpu")
    sites, blocks, layout = (), (), Layout(1)
    framewise, sees_source = True, False

    def __init__(self, **scheduler):
        from diffusers import DDIMScheduler

        self.config = {**SCHEDULER, **scheduler}
        self.prediction = self.config["prediction_type"]
        self.alpha_bar = DDIMScheduler.from_config({**self.config, "prediction_type": "epsilon"}).alphas_cumprod
        self.deviation = torch.linspace(0.1, 1.5, 4 * 6 * 10).view(4, 6, 10)
        self.evaluations, self.plans, self.reserved, self.prompts = [], [], [], []

    def schedule(self, steps: int) -> Schedule:
        if self.prediction == "flow":
            return Schedule.from_sigmas(torch.linspace(0, 1, steps + 1).tolist())
        return make_schedule(self.config, steps)

    def session(self, prompts, latents, schedule, body, *, reserve=0, beside=None):
        self.prompts.append(tuple(prompts))
        self.reserved.append(reserve)
        return body(self.predict)

    def predict(self, evaluation, plan=PLAIN) -> Tensor:
        self.evaluations.append(evaluation)
        self.plans.append(plan)
        s, n = self._levels(evaluation.label)
        mean = torch.stack([p.cond["embedding"][0, 0, 0] for p in evaluation.prompts]).view(-1, 1, 1, 1, 1)
        variance = self.deviation.square()
        centred = (evaluation.latents - s * mean) / (s**2 * variance + n**2)
        eps, clean = n * centred, mean + s * variance * centred
        return {"epsilon": eps, "v_prediction": s * eps - n * clean, "flow": eps - clean}[self.prediction]

    def _levels(self, label: float) -> tuple[float, float]:
        """(signal, noise) of what the network is told."""
        if self.prediction == "flow":
            return 1 - label, label
        alpha_bar = self.alpha_bar.double()[int(label)].item()
        return alpha_bar**0.5, (1 - alpha_bar) ** 0.5

    def grid(self, place, shape: Sequence[int]) -> tuple[int, int, int]:
        frames, _, h, w = shape[-4:]
        return frames, -(-h // 2**place.level), -(-w // 2**place.level)

    def bytes(self, rows: int, frames: int, size: tuple[int, int], grad: bool = False) -> int:
        return rows * frames * size[0] * size[1] * (8 if grad else 1)

    def free(self) -> int | None:
        return None


class GaussianCodec:
    """See `Codec`; there are no pixels, so it neither encodes nor decodes."""

    fingerprint, layout, takes = "gaussian codec", Layout(1), Layout(1)
    SCALE = 0.5  # of the network's latents over the wire's

    def scale(self, latents: Tensor) -> Tensor:
        if latents.ndim != 4 or latents.shape[1] != 4:
            raise ValueError(f"want latents [F, 4, h, w], got {list(latents.shape)}")
        return latents * self.SCALE

    def unscale(self, latents: Tensor) -> Tensor:
        return latents / self.SCALE


class GaussianText:
    """See `TextEncoder`."""

    fingerprint = "gaussian text"

    def embed(self, text: str):
        return prompt_of(torch.full((1, 2, 3), len(text) / 10), text, self.fingerprint)
