"""From what is on ComfyUI's canvas to a `Backbone`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ...engine.ports import Backbone
from .codec import ComfyCodec, layout_of
from .denoiser import ComfyDenoiser
from .sampling import Sampling
from .text import ComfyText


def from_comfy(
    model: Any, vae: Any, clip: Any = None, sigmas: Tensor | None = None, check: Callable[[], None] = lambda: None
) -> Backbone:
    """A MODEL with its VAE and, for texts, its CLIP.

    Args:
        model: core's ModelPatcher, with whatever LoRAs, shifts and patches are on it.
        sigmas: the noise levels of inversion and edit, falling to 0; by default the model's own.
        check: cancel point.

    Raises:
        ValueError: a kind of sampling that is not supported, or parts that do not fit.
    """
    name = type(model.model.model_config).__name__
    sampling = Sampling.of(name, model.get_model_object("model_sampling"), sigmas)
    layout = layout_of(vae)
    denoiser = ComfyDenoiser(name, model, layout, sampling)
    codec = ComfyCodec(name, vae, model.get_model_object("latent_format"), layout, check, denoiser.family.channels)
    if (have := getattr(vae, "latent_channels", None)) not in (None, codec.channels):
        raise ValueError(
            f"'{name}' works on latents of {codec.channels} channels and this VAE makes {have}: connect "
            "the VAE of this model"
        )
    return Backbone(name, denoiser, codec, ComfyText(name, clip))
