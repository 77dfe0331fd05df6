"""A VAE of ComfyUI's as a `Codec`. Wires carry what core's VAE Encode gives, so both kinds of node mix."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor

from ...engine.autograd import ordinary, plain_torch
from ...engine.words import Layout
from .fingerprint import fingerprint


class ComfyCodec:
    """See `Codec`. Latents on a wire: [F, C, h, w], or [1, C, F, h, w] for a VAE of video."""

    def __init__(self, name: str, vae, latent_format, layout: Layout, check: Callable[[], None] = lambda: None):
        """
        Args:
            latent_format: core's, of the network: how wire latents become its own.
            check: cancel point.
        """
        self.name, self.vae, self.format, self.layout, self.check = name, vae, latent_format, layout, check

    @cached_property
    def fingerprint(self) -> str:
        model = self.vae.first_stage_model
        return fingerprint(type(model).__name__, sorted(model.state_dict().items()))

    @property
    def video(self) -> bool:
        return self.format.latent_dimensions == 3

    def encode(self, frames: Tensor) -> Tensor:
        if frames.ndim != 4 or frames.shape[-1] != 3:
            raise ValueError(f"want frames [F, H, W, 3], got {list(frames.shape)}")
        count, height, width, _ = frames.shape
        m = self.layout.pixels
        if height % m or width % m:
            raise ValueError(
                f"frames are {width}x{height}, and '{self.name}' wants width and height divisible by {m}: "
                f"scale or crop to {width // m * m}x{height // m * m}"
            )
        whole = self.layout.pixel_frames(self.layout.latent_frames(count))
        if whole != count:
            fewer = self.layout.pixel_frames(self.layout.latent_frames(count) - 1)
            raise ValueError(
                f"'{self.name}' takes clips of {self._lengths()} frames, and this one has {count}: cut it to {fewer}"
                f", or repeat its last frame to make {whole}"
            )
        self.check()
        with torch.inference_mode():
            made = self.vae.encode(frames)
        return ordinary(made.float().cpu())

    def decode(self, latents: Tensor) -> Tensor:
        self._require_latents(latents)
        if not torch.isfinite(latents).all():
            raise ValueError("the latents hold NaN or infinity, which would decode to black frames")
        self.check()
        with torch.inference_mode():
            made = self.vae.decode(latents)
        return ordinary(made.reshape(-1, *made.shape[-3:]).float().cpu()).clamp(0, 1)

    @plain_torch
    def scale(self, latents: Tensor) -> Tensor:
        self._require_latents(latents)
        scaled = self.format.process_in(ordinary(latents).float())
        return scaled[0].movedim(1, 0) if self.video else scaled

    @plain_torch
    def unscale(self, latents: Tensor) -> Tensor:
        latents = latents.float().cpu()
        return self.format.process_out(latents.movedim(0, 1)[None] if self.video else latents)

    def _lengths(self) -> str:
        return ", ".join(str(self.layout.pixel_frames(t)) for t in (1, 2, 3)) + " ..."

    def _require_latents(self, latents: Tensor) -> None:
        want = "[1, {}, F, h, w]" if self.video else "[F, {}, h, w]"
        channels = self.format.latent_channels
        if getattr(latents, "is_nested", False):
            raise ValueError(f"'{self.name}' edits video alone, and these latents hold audio too")
        clips = len(latents) if self.video else 1
        if latents.ndim != (5 if self.video else 4) or latents.shape[1] != channels or clips != 1:
            raise ValueError(
                f"'{self.name}' wants latents {want.format(channels)}, got {list(latents.shape)}: encode one clip with "
                "this model's VAE"
            )


def layout_of(vae) -> Layout:
    """How a VAE of core's lays out a clip, by what it says of itself."""
    ratio = vae.upscale_ratio
    if not isinstance(ratio, tuple):
        return Layout(int(ratio))
    one, two = ratio[0](1), ratio[0](2)
    return Layout(int(ratio[-1]), int(two - one), one == 1 and two - one > 1)
