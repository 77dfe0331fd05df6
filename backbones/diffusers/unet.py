"""What the UNets of diffusers have in common as a `Denoiser`: sites, blocks, a schedule, and who moves the weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TypeVar

import torch
from torch import Tensor, nn

from ...engine.call import Evaluation
from ...engine.plan import PLAIN, EditPlan
from ...engine.ports import Predict
from ...engine.schedule import Schedule
from ...engine.words import Block, Layout, Prompt, Site
from ..memory import Memory
from . import parts
from .layers import attention_sites, decoder_blocks

T = TypeVar("T")
GRADIENT_WORTH = 8  # a pass with gradients keeps what a pass without drops; modelled, not measured


class DiffusersUNet:
    """See `Denoiser`. Each family adds `predict`."""

    framewise = False
    sees_source = False
    compiles = False  # set it to have `torch.compile` take the evaluations that no control acts inside of
    fewest_frames = 2

    def __init__(
        self,
        name: str,
        network: nn.Module,
        layout: Layout,
        scheduler_config: dict,
        memory: Memory,
        scaling_factor: float = 1.0,
    ):
        """
        Args:
            scaling_factor: of the network's latents over the VAE's, for networks that are given a picture as well.
        """
        self.name, self.network, self.layout, self.memory = name, network, layout, memory
        self.scheduler_config, self.scaling_factor = scheduler_config, scaling_factor
        self.fingerprint = parts.fingerprint(network)

    @staticmethod
    def most_frames(network: nn.Module) -> int | None:
        """Of a clip that a network can take; None: any number."""
        return None

    @property
    def device(self) -> torch.device:
        return self.memory.device

    @property
    def channels(self) -> int:
        return self.network.config.out_channels

    @cached_property
    def sites(self) -> tuple[Site, ...]:
        return attention_sites(self.network)

    @cached_property
    def blocks(self) -> tuple[Block, ...]:
        return decoder_blocks(self.network)

    def running(self, plan: EditPlan, evaluation: Evaluation) -> Callable:
        """The network, or what `torch.compile` made of it. A control is Python at every layer, which would break the
        graph there, and most often again at the next step: where one acts, the network runs as it is."""
        acted = plan.acting_at("attention") or plan.acting_at("feature")
        return self.network if acted or evaluation.recompute or not self.compiles else self._compiled

    @cached_property
    def _compiled(self) -> Callable:
        return torch.compile(self.network)

    def grid(self, place: Site | Block, shape: Sequence[int]) -> tuple[int, int, int]:
        """A UNet halves the latent at each level, rounding up."""
        frames, _, h, w = shape[-4:]
        return frames, -(-h // 2**place.level), -(-w // 2**place.level)

    def bytes(self, rows: int, frames: int, size: tuple[int, int], grad: bool = False) -> int:
        cells = rows * frames * size[0] * size[1] * (GRADIENT_WORTH if grad else 1)
        return cells * parts.ACTIVATION_BYTES * self.network.dtype.itemsize

    def free(self) -> int | None:
        return self.memory.free()

    def schedule(self, steps: int) -> Schedule:
        return parts.make_schedule(self.scheduler_config, steps)

    def session(
        self,
        prompts: Sequence[Prompt],
        latents: Tensor,
        schedule: Schedule,
        body: Callable[[Predict], T],
        *,
        reserve: int = 0,
        beside: Tensor | None = None,
    ) -> T:
        with self.memory.resident(self.network, reserve):
            return body(self.predict)

    def predict(self, evaluation: Evaluation, plan: EditPlan = PLAIN) -> Tensor:
        """See `Predict`."""
        raise TypeError(f"{type(self).__name__} is no family: use one that has `predict`")
