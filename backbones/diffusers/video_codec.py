"""A causal 3-D VAE on a clip, as a `Codec`."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ...engine.autograd import ordinary, plain_torch
from ...engine.words import Layout
from ..memory import Memory
from . import parts

log = logging.getLogger(__name__)
# What the VAE takes at its peak in planes of the pixels of the frames it holds at once, as wide as its finest layers;
# modelled on its largest layers, not measured.
PLANES, HELD_FRAMES = 12, 9


class VideoCodec:
    """See `Codec`. Latents on a wire: [1, C, T, h, w], as ComfyUI's own nodes have them of 3-D VAEs."""

    def __init__(
        self,
        name: str,
        vae: nn.Module,
        memory: Memory,
        check: Callable[[], None] = lambda: None,
        patch: int = 1,
        fewest_frames: int = 1,
    ):
        """
        Args:
            check: cancel point, called before the clip is encoded and decoded.
            patch: latent cells in a token of the network, along each side.
            fewest_frames: of a clip that the network can take.
        """
        self.name, self.vae, self.memory, self.check = name, vae, memory, check
        self.patch, self.fewest_frames = patch, fewest_frames
        self.fingerprint = parts.fingerprint(vae)
        pixels = 2 ** (len(vae.config.block_out_channels) - 1)
        self.layout = Layout(pixels, int(vae.config.temporal_compression_ratio), first_alone=True)
        group = self.layout.frames * vae.num_latent_frames_batch_size
        self.takes = Layout(pixels * patch, group, first_alone=True)

    @property
    def channels(self) -> int:
        return self.vae.config.latent_channels

    @plain_torch
    def encode(self, frames: Tensor) -> Tensor:
        if frames.ndim != 4 or frames.shape[-1] != 3:
            raise ValueError(f"want frames [F, H, W, 3], got {list(frames.shape)}")
        self._require_frames(len(frames))
        self._require_size(*frames.shape[1:3])
        parts.require_pictures(frames)

        def encode() -> Tensor:
            pixels = ordinary(frames).movedim(-1, 0)[None] * 2 - 1
            return self.vae.encode(pixels.to(self.memory.device, self.vae.dtype)).latent_dist.mode()

        return self._through(encode, *frames.shape[1:3]).float().cpu()

    @plain_torch
    def decode(self, latents: Tensor) -> Tensor:
        self._require_latents(latents)
        if not parts.all_finite(latents):
            raise ValueError("the latents hold NaN or infinity, which would decode to black frames")

        def decode() -> Tensor:
            return self.vae.decode(ordinary(latents).to(self.memory.device, self.vae.dtype)).sample

        height, width = (self.layout.pixels * n for n in latents.shape[-2:])
        clip = self._through(decode, height, width).float().cpu()
        return clip[0].movedim(0, -1).div(2).add_(0.5).clamp_(0, 1).contiguous()

    def scale(self, latents: Tensor) -> Tensor:
        self._require_latents(latents)
        return latents[0].movedim(0, 1) * self.vae.config.scaling_factor

    def unscale(self, latents: Tensor) -> Tensor:
        return latents.cpu().movedim(1, 0)[None] / self.vae.config.scaling_factor

    def _through(self, run: Callable[[], Tensor], height: int, width: int) -> Tensor:
        """What `run` gives with the VAE on its device; in tiles from where memory runs out."""
        wide = self.vae.config.block_out_channels[0]
        taken = PLANES * wide * HELD_FRAMES * height * width * self.vae.dtype.itemsize
        self.check()
        with self.memory.resident(self.vae, taken), torch.no_grad():
            try:
                return run()
            except torch.OutOfMemoryError:
                log.warning("out of memory in the VAE of '%s': it goes on in tiles", self.name)
            self.vae.enable_tiling()
            try:
                return run()
            finally:
                self.vae.disable_tiling()

    def _require_frames(self, frames: int) -> None:
        if frames < self.fewest_frames:
            raise ValueError(
                f"want a clip of at least {self.fewest_frames} frames, got {frames}: is this a picture, or an "
                "unreadable video?"
            )
        # The VAE decodes a few latent frames at a time, and takes the first for one frame if the first few are odd.
        group = self.layout.frames * self.vae.num_latent_frames_batch_size
        if more := (1 - frames) % group:
            raise ValueError(
                f"'{self.name}' wants {group}k + 1 frames, got {frames}: cut the clip to {frames + more - group}, or "
                f"add frames up to {frames + more}"
            )

    def _require_size(self, height: int, width: int) -> None:
        m = self.layout.pixels * self.patch
        if height % m or width % m:
            raise ValueError(
                f"frames are {width}x{height}, and '{self.name}' wants width and height divisible by {m}: "
                f"scale or crop to {width // m * m}x{height // m * m}"
            )

    def _require_latents(self, latents: Tensor) -> None:
        if latents.ndim != 5 or latents.shape[:2] != (1, self.channels):
            raise ValueError(
                f"'{self.name}' wants latents [1, {self.channels}, T, h, w], got {list(latents.shape)}: "
                "encode the frames with this model's VAE"
            )
        self._require_frames(self.layout.pixel_frames(latents.shape[2]))
        self._require_size(*(self.layout.pixels * n for n in latents.shape[-2:]))
