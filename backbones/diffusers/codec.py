"""A 2-D VAE on the frames of a clip, as a `Codec`."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from ...engine.autograd import plain_torch
from ...engine.words import Layout
from ..memory import Memory
from . import parts


class FrameCodec:
    """See `Codec`. Latents on a wire: [F, C, h, w]."""

    def __init__(
        self,
        name: str,
        vae: nn.Module,
        memory: Memory,
        check: Callable[[], None] = lambda: None,
        fewest_frames: int = 1,
        most_frames: int | None = None,
    ):
        """
        Args:
            check: cancel point, called between batches of frames.
            fewest_frames, most_frames: of a clip that the network can take.
        """
        self.name, self.vae, self.memory, self.check = name, vae, memory, check
        self.fewest_frames, self.most_frames = fewest_frames, most_frames
        self.fingerprint = parts.fingerprint(vae)
        self.layout = self.takes = Layout(2 ** (len(vae.config.block_out_channels) - 1))

    @property
    def channels(self) -> int:
        return self.vae.config.latent_channels

    @plain_torch
    def encode(self, frames: Tensor) -> Tensor:
        if frames.ndim != 4 or frames.shape[-1] != 3:
            raise ValueError(f"want frames [F, H, W, 3], got {list(frames.shape)}")
        f, height, width, _ = frames.shape
        self._require_frames(f)
        if height % self.layout.pixels or width % self.layout.pixels:
            m = self.layout.pixels
            raise ValueError(
                f"frames are {width}x{height}, and '{self.name}' wants width and height divisible by {m}: "
                f"scale or crop to {width // m * m}x{height // m * m}, or let Prepare Clip pad it and crop the edit"
            )
        parts.require_pictures(frames)
        return parts.encode_frames(self.vae, frames, self.memory, self.check)

    @plain_torch
    def decode(self, latents: Tensor) -> Tensor:
        self._require_latents(latents)
        if not parts.all_finite(latents):
            raise ValueError("the latents hold NaN or infinity, which would decode to black frames")
        return parts.decode_latents(self.vae, latents, self.memory, self.check)

    def scale(self, latents: Tensor) -> Tensor:
        self._require_latents(latents)
        return latents * self.vae.config.scaling_factor

    def unscale(self, latents: Tensor) -> Tensor:
        return latents.cpu() / self.vae.config.scaling_factor

    def _require_latents(self, latents: Tensor) -> None:
        if latents.ndim != 4 or latents.shape[1] != self.channels:
            raise ValueError(
                f"'{self.name}' wants latents [F, {self.channels}, h, w], got {list(latents.shape)}: "
                "encode the frames with this model's VAE"
            )
        self._require_frames(len(latents))

    def _require_frames(self, frames: int) -> None:
        if frames < self.fewest_frames:
            least = "1 frame" if self.fewest_frames == 1 else f"{self.fewest_frames} frames"
            raise ValueError(
                f"want a clip of at least {least}, got {frames}: is this a picture, or an unreadable video?"
            )
        if self.most_frames is not None and frames > self.most_frames:
            raise ValueError(
                f"'{self.name}' knows {self.most_frames} places in time and takes no longer clips, got {frames} "
                "frames: shorten the clip"
            )
