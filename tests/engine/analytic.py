"""A backbone whose perfect denoiser is known in closed form, so that the loops can be tested without a network."""

from __future__ import annotations

from contextlib import contextmanager

import torch

from weft.backbones.diffusers_parts import make_schedule
from weft.engine.words import Prompt
from weft.tests.tiny import SCHEDULER


class Gaussian:
    """Clips whose values are independent Gaussians: mean from the prompt, standard deviations from 0.1 to 1.5.

    At signal s and noise n the best guess of the noise is n (x - s mean) / (s^2 variance + n^2).
    """

    name, fingerprint, device = "gaussian", "gaussian", torch.device("cpu")
    sites, blocks, pixels_per_cell = (), (), 1
    framewise, sees_source = True, False
    SCALE = 0.5  # of the network's latents over the wire's

    def __init__(self, **scheduler):
        from diffusers import DDIMScheduler

        self.config = {**SCHEDULER, **scheduler}
        self.alpha_bar = DDIMScheduler.from_config(self.config).alphas_cumprod.double()
        self.deviation = torch.linspace(0.1, 1.5, 4 * 6 * 10).view(4, 6, 10)
        self.evaluations, self.controls, self.on_device = [], [], []

    def sample(self, frames: int = 3, mean: float = 0.0) -> torch.Tensor:
        """A clip as it travels on a wire."""
        return self.unscale(mean + self.deviation * torch.randn(frames, 4, 6, 10))

    def embed(self, text: str) -> Prompt:
        return Prompt(torch.full((1, 2, 3), len(text) / 10), text, self.fingerprint)

    def scale(self, latents):
        if latents.ndim != 4 or latents.shape[1] != 4:
            raise ValueError(f"want latents [F, 4, h, w], got {list(latents.shape)}")
        return latents * self.SCALE

    def unscale(self, latents):
        return latents / self.SCALE

    def schedule(self, steps: int):
        return make_schedule(self.config, steps)

    def predict(self, evaluation, controls=()):
        self.evaluations.append(evaluation)
        self.controls.append(tuple(controls))
        alpha_bar = self.alpha_bar[evaluation.timestep].item()
        s, n = alpha_bar**0.5, (1 - alpha_bar) ** 0.5
        mean = torch.stack([p.embedding[0, 0, 0] for p in evaluation.prompts]).view(-1, 1, 1, 1, 1)
        variance = self.deviation.square()
        centred = (evaluation.latents - s * mean) / (s**2 * variance + n**2)
        if self.config["prediction_type"] == "epsilon":
            return n * centred
        return s * n * centred - n * (mean + s * variance * centred)

    @contextmanager
    def resident(self, part, cells=0):
        self.on_device.append((part, cells))
        yield
