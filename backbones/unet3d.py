"""Text-to-video models of diffusers' `UNet3DConditionModel`: Zeroscope, ModelScope and the toy world's.

Frames are folded into the batch for spatial layers and pixels for temporal ones, rows first. Each spatial attention
has a temporal one beside it; `transformer_in` is temporal attention at full resolution with no spatial partner.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cached_property

import torch
from torch import Tensor, nn

from ..engine.autograd import ordinary, plain_torch
from ..engine.nouns import Control, Evaluation, Prompt, Site
from ..engine.schedule import Schedule
from . import diffusers_parts as parts
from .memory import Memory
from .protocol import Part
from .taps import tapped


class UNet3DBackbone:
    """See `Backbone`. Latents on a wire: [F, C, h, w]."""

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
        return self.network.config.in_channels

    @cached_property
    def sites(self) -> tuple[Site, ...]:
        found = []
        for name in _running_order(self.network):
            kind, block, level = _place(name, len(self.network.down_blocks))
            found.append(Site(name, kind, block, level, len(found)))
        return tuple(found)

    @cached_property
    def blocks(self) -> tuple[str, ...]:
        return tuple(f"up_blocks.{i}" for i in range(len(self.network.up_blocks)))

    # ---- pictures, latents, text ------------------------------------------------------------------------------------

    @plain_torch
    def encode(self, frames: Tensor) -> Tensor:
        if frames.ndim != 4 or frames.shape[-1] != 3:
            raise ValueError(f"want frames [F, H, W, 3], got {list(frames.shape)}")
        f, height, width, _ = frames.shape
        if f < 2:
            raise ValueError(f"want a clip of at least 2 frames, got {f}: is this a picture, or an unreadable video?")
        if height % self.pixels_per_cell or width % self.pixels_per_cell:
            m = self.pixels_per_cell
            raise ValueError(
                f"frames are {width}x{height}, and '{self.name}' wants width and height divisible by {m}: "
                f"scale or crop to {width // m * m}x{height // m * m}"
            )
        if not torch.isfinite(frames).all():
            raise ValueError("the frames hold NaN or infinity")
        with self.resident("vae"):
            return parts.encode_frames(self.vae, ordinary(frames), self.device, self.check)

    @plain_torch
    def decode(self, latents: Tensor) -> Tensor:
        self._require_latents(latents)
        if not torch.isfinite(latents).all():
            raise ValueError("the latents hold NaN or infinity, which would decode to black frames")
        with self.resident("vae"):
            return parts.decode_latents(self.vae, ordinary(latents), self.device, self.check)

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
        if len(latents) < 2:
            raise ValueError(f"want a clip of at least 2 frames, got {len(latents)}")

    @plain_torch
    def embed(self, text: str) -> Prompt:
        with self.resident("text_encoder"):
            embedding = parts.embed_text(self.tokenizer, self.text_encoder, text, self.device).cpu()
        return Prompt(embedding, text, self.fingerprint)

    # ---- the network ------------------------------------------------------------------------------------------------

    def schedule(self, steps: int) -> Schedule:
        return parts.make_schedule(self.scheduler_config, steps)

    def predict(self, evaluation: Evaluation, controls: Sequence[Control] = ()) -> Tensor:
        x = evaluation.latents.to(self.device, self.network.dtype).transpose(1, 2)
        text = torch.cat([self._text(prompt) for prompt in evaluation.prompts])
        grids = self._grids(evaluation.latents)
        with tapped(self.network, self.sites, self.blocks, grids, evaluation, controls):
            output = self.network(x, evaluation.timestep, text, return_dict=False)[0]
        return output.transpose(1, 2).float()

    def _text(self, prompt: Prompt) -> Tensor:
        if len(prompt.embedding) != 1:
            raise ValueError(f"'{self.name}' takes one prompt for all frames, got {len(prompt.embedding)}")
        return ordinary(prompt.embedding).to(self.device, self.network.dtype)

    def _grids(self, latents: Tensor) -> dict[int, tuple[int, int, int]]:
        _, frames, _, h, w = latents.shape
        return {k: (frames, -(-h // 2**k), -(-w // 2**k)) for k in range(len(self.network.down_blocks))}

    def resident(self, part: Part, cells: int = 0):
        module = {"network": self.network, "vae": self.vae, "text_encoder": self.text_encoder}[part]
        return self.memory.resident(module, cells * parts.ACTIVATION_BYTES * module.dtype.itemsize)


_LAYER = re.compile(
    r"((?P<half>down|mid|up)_blocks?\.?(?P<index>\d*)\.)?(?P<list>attentions|temp_attentions|transformer_in)"
    r"\.?(?P<item>\d*)\.?transformer_blocks\.0\.(?P<role>attn1|attn2)$"
)


def _parsed(name: str) -> re.Match[str]:
    found = _LAYER.match(name)
    if found is None:
        raise ValueError(f"unknown attention layer '{name}': this is not a UNet3DConditionModel")
    return found


def _place(name: str, levels: int) -> tuple[str, str, int]:
    """(kind, block, level) of an attention layer, from its name."""
    found = _parsed(name)
    if found["list"] == "transformer_in":
        return "temporal", "transformer_in", 0
    kind = "temporal" if found["list"] == "temp_attentions" else "spatial" if found["role"] == "attn1" else "cross"
    index = int(found["index"] or 0)
    level = {"down": index, "mid": levels - 1, "up": levels - 1 - index}[found["half"]]
    return kind, f"{found['half']}.{index}.{found['item']}", level


def _running_order(network: nn.Module) -> list[str]:
    """Names of all attention layers in the order they run: in each block, spatial before temporal."""

    def key(name: str):
        found = _parsed(name)
        half = {None: 0, "down": 1, "mid": 2, "up": 3}[found["half"]]
        item = int(found["item"] or 0)
        return half, int(found["index"] or 0), item, found["list"] == "temp_attentions", found["role"]

    return sorted((n for n, m in network.named_modules() if n.endswith((".attn1", ".attn2"))), key=key)
