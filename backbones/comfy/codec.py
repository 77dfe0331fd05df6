"""A VAE of ComfyUI's as a `Codec`. Wires carry what core's VAE Encode gives, so both kinds of node mix."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor

from ...engine.autograd import ordinary, plain_torch
from ...engine.words import Layout
from .fingerprint import fingerprint

log = logging.getLogger(__name__)


class ComfyCodec:
    """See `Codec`. Latents on a wire: [F, C, h, w], or [1, C, F, h, w] for a VAE of video."""

    def __init__(
        self,
        name: str,
        vae,
        latent_format,
        layout: Layout,
        check: Callable[[], None] = lambda: None,
        channels: int | None = None,
    ):
        """
        Args:
            latent_format: core's, of the network: how wire latents become its own.
            check: cancel point.
            channels: of the picture's latents, where the format says another number.
        """
        self.name, self.vae, self.format, self.layout, self.check = name, vae, latent_format, layout, check
        self.channels = channels or latent_format.latent_channels
        self.takes = table_of(vae)

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
        m = self.takes.pixels
        if height % m or width % m:
            raise ValueError(
                f"frames are {width}x{height}, and '{self.name}' wants width and height divisible by {m}: "
                f"scale or crop to {width // m * m}x{height // m * m}"
            )
        if not count:
            raise ValueError("want a clip of at least 1 frame, got none: is this an unreadable video?")
        fits = self.takes.fitting(count)
        if fits < count:
            filled = self.takes.filled(count)
            log.warning(
                "%s takes clips of %d or %d frames: of %d the last %d are left out; Prepare Clip can fill them up "
                "instead",
                self.name,
                fits,
                filled,
                count,
                count - fits,
            )
        self.check()
        with torch.inference_mode():
            made = self.vae.encode(frames[:fits])
        return ordinary(made.float().cpu())

    def apart(self, latents) -> tuple[Tensor, Tensor]:
        """(the picture's wire latents, those of audio), of a latent that core packs."""
        streams = latents.unbind()
        if len(streams) != 2:
            raise ValueError(f"want latents of a picture, or of a picture and audio, got {len(streams)} streams")
        return streams[0], ordinary(streams[1]).cpu()

    def joined(self, picture: Tensor, beside: Tensor):
        from comfy.nested_tensor import NestedTensor  # core that packs latents has it

        return NestedTensor([picture, beside])

    def decode(self, latents: Tensor) -> Tensor:
        latents = self.apart(latents)[0] if getattr(latents, "is_nested", False) else latents
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

    def _require_latents(self, latents: Tensor) -> None:
        want = "[1, {}, F, h, w]" if self.video else "[F, {}, h, w]"
        channels = self.channels
        clips = len(latents) if self.video else 1
        if latents.ndim != (5 if self.video else 4) or latents.shape[1] != channels or clips != 1:
            raise ValueError(
                f"'{self.name}' wants latents {want.format(channels)}, got {list(latents.shape)}: encode one clip with "
                "this model's VAE"
            )


def layout_of(vae) -> Layout:
    """How a VAE of core's lays out a clip: by its own layers where they can be read, else by core's table."""
    strides = _ltx_strides(vae)
    if not strides:
        return table_of(vae)
    time, space, _ = (math.prod(axis) for axis in zip(*strides))
    return Layout(vae.first_stage_model.encoder.patch_size * space, time, time > 1)


def table_of(vae) -> Layout:
    """What core believes, by the class of a VAE alone: the sizes and lengths that it takes."""
    ratio = vae.upscale_ratio
    if not isinstance(ratio, tuple):
        return Layout(int(ratio))
    if type(getattr(vae, "first_stage_model", None)).__name__ == "MiniMaxH3VideoVAE":
        return Layout(int(ratio[-1]), 4, True, again=5, last=2)  # 1, 4, 4, 4, 4 frames, and so on; 17k + 5 in all
    one, two = ratio[0](1), ratio[0](2)
    return Layout(int(ratio[-1]), int(two - one), one == 1 and two - one > 1)


def _ltx_strides(vae) -> list[tuple[int, int, int]]:
    """Of the halving layers of LTX-Video's VAE, whose sizes stand in its file; core's table has the first release's."""
    encoder = getattr(getattr(vae, "first_stage_model", None), "encoder", None)
    if type(encoder).__module__ != "comfy.ldm.lightricks.vae.causal_video_autoencoder":
        return []
    layers = (block if hasattr(block, "stride") else getattr(block, "conv", block) for block in encoder.down_blocks)
    return [tuple(layer.stride) for layer in layers if isinstance(getattr(layer, "stride", None), tuple)]
