"""Two networks that share one way down: Wan 2.2's, one for high noise, one for low."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TypeVar

import torch
from torch import Tensor

from ...engine.call import Evaluation
from ...engine.plan import EditPlan
from ...engine.ports import Predict
from ...engine.schedule import Schedule
from ...engine.words import Prompt
from .denoiser import ComfyDenoiser, Network

T = TypeVar("T")


class TwoExperts(ComfyDenoiser):
    """See `Denoiser`. An evaluation goes to one of them by its noise level alone, so that an inversion and an edit hand
    over at the same level."""

    def __init__(self, high: ComfyDenoiser, low: ComfyDenoiser, boundary: float):
        """
        Args:
            boundary: from this sigma on, in 0..1, `high` is evaluated.

        Raises:
            ValueError: they are of different classes or sizes, or are sampled in different ways.
        """
        super().__init__(high.name, high.patcher, high.layout, high.sampling)
        self.high, self.low, self.boundary = high, low, boundary
        if [s.layer for s in high.sites] != [s.layer for s in low.sites] or high.name != low.name:
            raise ValueError(
                f"'{high.name}' and '{low.name}' are no two experts of one model: connect the high-noise and the "
                "low-noise file of the same model"
            )
        ways = [expert.sampling.model.sigmas for expert in (high, low)]
        if ways[0].shape != ways[1].shape or not torch.allclose(*ways):
            raise ValueError("the two experts are sampled with different shifts: give both the same ModelSampling node")

    @cached_property
    def fingerprint(self) -> str:
        return f"{self.high.fingerprint}{self.low.fingerprint}{self.boundary:g}"

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
        clip = (prompts, latents, schedule)

        def both(high: Network) -> T:
            return self.low.inside(*clip, lambda low: body(self._taking_turns(high, low, reserve)), reserve, beside)

        return self.high.inside(*clip, both, reserve, beside)

    def _taking_turns(self, high: Network, low: Network, reserve: int) -> Predict:
        last: list[Network] = [low]  # whose weights were loaded last

        def predict(evaluation: Evaluation, plan: EditPlan) -> Tensor:
            network = high if self.sampling.sigma(evaluation.label) >= self.boundary else low
            if network is not last[0]:
                network.there.load_again(reserve)
                last[0] = network
            return network.predict(evaluation, plan)

        return predict
