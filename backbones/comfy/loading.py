"""From what is on ComfyUI's canvas to a `Backbone`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ...engine.ports import Backbone
from ...engine.words import Layout
from .codec import ComfyCodec, layout_of
from .denoiser import ComfyDenoiser
from .experts import TwoExperts
from .sampling import Sampling
from .text import ComfyText

BOUNDARY = 0.875  # of Wan 2.2 text to video; image to video has 0.9


def from_comfy(
    model: Any,
    vae: Any,
    clip: Any = None,
    sigmas: Tensor | None = None,
    check: Callable[[], None] = lambda: None,
    low_noise_model: Any = None,
    boundary: float = BOUNDARY,
) -> Backbone:
    """A MODEL with its VAE and, for texts, its CLIP.

    Args:
        model: core's ModelPatcher, with whatever LoRAs, shifts and patches are on it.
        sigmas: the noise levels of inversion and edit, falling to 0; by default the model's own.
        check: cancel point.
        low_noise_model: the second expert of a model that has two; `model` is then the one for high noise.
        boundary: the sigma from which on `model` is evaluated.

    Raises:
        ValueError: a kind of sampling that is not supported, or parts that do not fit.
    """
    layout = layout_of(vae)
    denoiser = _denoiser(model, layout, sigmas)
    if low_noise_model is not None:
        denoiser = TwoExperts(denoiser, _denoiser(low_noise_model, layout, sigmas), boundary)
    name = denoiser.name
    codec = ComfyCodec(name, vae, model.get_model_object("latent_format"), layout, check, denoiser.family.channels)
    if (have := getattr(vae, "latent_channels", None)) not in (None, codec.channels):
        raise ValueError(
            f"'{name}' works on latents of {codec.channels} channels and this VAE makes {have}: connect "
            "the VAE of this model"
        )
    return Backbone(name, denoiser, codec, ComfyText(name, clip))


def _denoiser(model: Any, layout: Layout, sigmas: Tensor | None) -> ComfyDenoiser:
    name = type(model.model.model_config).__name__
    return ComfyDenoiser(name, model, layout, Sampling.of(name, model.get_model_object("model_sampling"), sigmas))
