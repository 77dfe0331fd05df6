"""What the diffusers models have in common: a 2-D VAE, a text encoder and a UNet that controls can be tapped into."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor, nn

from ..engine.autograd import plain_torch
from ..engine.nouns import Block, Prompt, Site
from ..engine.schedule import Schedule
from . import diffusers_parts as parts
from .memory import Memory
from .protocol import Part
from .unet_layers import attention_sites, decoder_blocks


class DiffusersUNet:
    """A `Backbone` but for `predict`, which each family adds. Latents on a wire: [F, C, h, w]."""

    framewise = False
    sees_source = False
    fewest_frames = 2

    def __init__(
        self,
        name: str,
        network: nn.Module,
        vae: nn.Module,
        text_encoder: nn.Module,
        tokenizer,
        scheduler_config: dict,
        memory: Memory,
        check: Callable[[], None] = lambda: None,
    ):
        """
        Args:
            check: cancel point, called between batches of frames in `encode` and `decode`.
        """
        self.name, self.memory, self.check = name, memory, check
        self.network, self.vae, self.text_encoder, self.tokenizer = network, vae, text_encoder, tokenizer
        self.scheduler_config = scheduler_config
        self.fingerprint = parts.fingerprint(network, vae, text_encoder)
        self.pixels_per_cell = 2 ** (len(vae.config.block_out_channels) - 1)

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

    # ---- pictures, latents, text ------------------------------------------------------------------------------------

    @plain_torch
    def encode(self, frames: Tensor) -> Tensor:
        if frames.ndim != 4 or frames.shape[-1] != 3:
            raise ValueError(f"want frames [F, H, W, 3], got {list(frames.shape)}")
        f, height, width, _ = frames.shape
        self._require_frames(f)
        if height % self.pixels_per_cell or width % self.pixels_per_cell:
            m = self.pixels_per_cell
            raise ValueError(
                f"frames are {width}x{height}, and '{self.name}' wants width and height divisible by {m}: "
                f"scale or crop to {width // m * m}x{height // m * m}"
            )
        if not parts.all_finite(frames):
            raise ValueError("the frames hold NaN or infinity")
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

    @plain_torch
    def embed(self, text: str) -> Prompt:
        with self.resident("text_encoder"):
            embedding = parts.embed_text(self.tokenizer, self.text_encoder, text, self.device).cpu()
        return Prompt(embedding, text, self.fingerprint, parts.token_texts(self.tokenizer, text))

    # ---- the network ------------------------------------------------------------------------------------------------

    def schedule(self, steps: int) -> Schedule:
        return parts.make_schedule(self.scheduler_config, steps)

    def _grids(self, latents: Tensor) -> dict[int, tuple[int, int, int]]:
        _, frames, _, h, w = latents.shape
        return {k: (frames, -(-h // 2**k), -(-w // 2**k)) for k in range(len(self.network.down_blocks))}

    def resident(self, part: Part, cells: int = 0):
        module = {"network": self.network, "vae": self.vae, "text_encoder": self.text_encoder}[part]
        return self.memory.resident(module, cells * parts.ACTIVATION_BYTES * module.dtype.itemsize)
