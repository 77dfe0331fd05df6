"""What `backbones/` provides: the three models that an edit needs, each with a fingerprint of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from .call import Evaluation
from .plan import EditPlan
from .schedule import Schedule
from .words import Layout, Model, Prompt

T = TypeVar("T")
# The network's own output [R, F, C, h, w] in float32, with the attention and feature seams of a plan. Differentiable in
# the evaluation's latents where gradients are enabled. The network is as before when this returns or raises.
Predict = Callable[[Evaluation, EditPlan], Tensor]


class Denoiser(Model, Protocol):
    """The network."""

    device: torch.device

    def schedule(self, steps: int) -> Schedule: ...

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
        """`body(predict)`, run where the network lives and all its weights are; nothing else evaluates it.

        Args:
            prompts: all that `body` will use.
            latents: [F, C, h, w] of the clip as the network sees it.
            reserve: bytes that `body` will want beside the weights.
            beside: what the clip has beside its picture, if anything: see `engine/beside.py`.
        """
        ...

    def free(self) -> int | None:
        """Bytes that an evaluation may still take where the network is; None where nothing is known to limit it."""
        ...


class Codec(Protocol):
    """The VAE.

    Two forms of a clip's latents: on a wire they are what ComfyUI's own VAE nodes give (unscaled, [F, C, h, w] for a
    2-D VAE); inside the engine they are scaled for the network, always [F, C, h, w].

    A codec of clips with audio also has `apart(latents) -> (picture, beside)` and `joined(picture, beside)`.
    """

    fingerprint: str
    layout: Layout
    takes: Layout  # the sizes and lengths of clips that it encodes, which may be coarser

    def encode(self, frames: Tensor) -> Tensor:
        """Frames [F, H, W, 3] in 0..1 -> wire latents. ValueError on a shape or size the model cannot take."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Wire latents -> frames [F, H, W, 3] float32 in 0..1, on the CPU."""
        ...

    def scale(self, latents: Tensor) -> Tensor:
        """Wire latents -> the network's [F, C, h, w]. ValueError on a wrong shape."""
        ...

    def unscale(self, latents: Tensor) -> Tensor:
        """The network's [F, C, h, w] -> wire latents, on the CPU."""
        ...


class TextEncoder(Protocol):
    fingerprint: str  # "" where the model takes whatever conditioning it is given

    def embed(self, text: str) -> Prompt: ...


@dataclass(frozen=True)
class Backbone:
    """A model that edits clips: what travels on a WEFT_MODEL wire."""

    name: str
    denoiser: Denoiser
    codec: Codec
    text: TextEncoder

    def require(self, trajectory, *prompts: Prompt) -> None:
        """Refuses a trajectory or prompts of other models.

        Raises:
            ValueError: the clip was inverted with another network, or a prompt encoded by another text encoder, or for
                another number of frames.
        """
        if trajectory.model not in ("", self.denoiser.fingerprint):
            raise ValueError(
                f"this trajectory was inverted with another model than '{self.name}' (fingerprint "
                f"{trajectory.model}, got {self.denoiser.fingerprint}): invert the clip with this model, or connect "
                "the model that was used"
            )
        for prompt in prompts:
            self.require_prompt(prompt, trajectory.shape[0])

    def require_prompt(self, prompt: Prompt, frames: int) -> None:
        """ValueError for a prompt that another text encoder made, or that is for another number of frames."""
        if self.text.fingerprint and not prompt.encoder:
            raise ValueError("this conditioning is not from Weft: use 'Encode Prompt (Weft)' with the same model")
        if self.text.fingerprint and prompt.encoder != self.text.fingerprint:
            raise ValueError(
                f"the prompt '{prompt.text}' was encoded by another model than '{self.name}': encode it with this one"
            )
        if prompt.frames not in (1, frames):
            raise ValueError(
                f"the prompt '{prompt.text}' has embeddings for {prompt.frames} frames and the clip has {frames}: give "
                "one embedding, or one per frame"
            )
