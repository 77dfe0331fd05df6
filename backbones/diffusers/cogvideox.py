"""CogVideoX 2b and 5b: a transformer whose every layer attends over the text and all frames at once, with a causal 3-D
VAE and T5.

Tokens are the text's, then the clip's, frame by frame and row by row, each a patch of 2x2 latent cells. 2b adds a table
of sines to them, 5b turns its queries and keys by their place in time, height and width. A latent frame is four frames
of the clip, the first one alone. There is one resolution, so no finest level; attention sites are of the kind "joint".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

import torch
from torch import Tensor, nn

from ...engine.call import Evaluation
from ...engine.plan import PLAIN, EditPlan
from ...engine.ports import Backbone
from ...engine.words import Block, Prompt, Site
from ..memory import Memory
from .assembly import Parts, vae_dtype
from .parts import make_schedule
from .taps import tapped
from .text import ClipText, embedding_for
from .unet import DiffusersUNet
from .video_codec import VideoCodec

PLANES = 24  # of all tokens as wide as the network, that a layer holds at its peak; counted: q, k, v, heads, 4x feed
KEPT = 34  # the same, that a pass with gradients keeps of each layer


class CogVideoX(DiffusersUNet):
    """See `Denoiser`."""

    fewest_frames = 9  # three latent frames

    @cached_property
    def sites(self) -> tuple[Site, ...]:
        layers = range(len(self.network.transformer_blocks))
        return tuple(Site(f"transformer_blocks.{i}.attn1", "joint", f"{i}", 0, i) for i in layers)

    @property
    def blocks(self) -> tuple[Block, ...]:
        return ()

    def grid(self, place: Site | Block, shape: Sequence[int]) -> tuple[int, int, int]:
        frames, _, h, w = shape[-4:]
        patch = self.network.config.patch_size
        return frames, h // patch, w // patch

    def bytes(self, rows: int, frames: int, size: tuple[int, int], grad: bool = False) -> int:
        told = self.network.config
        tokens = told.max_text_seq_length + frames * size[0] * size[1] // told.patch_size**2
        planes = PLANES + (KEPT * told.num_layers if grad else 0)
        width = told.num_attention_heads * told.attention_head_dim
        return rows * tokens * width * planes * self.network.dtype.itemsize

    def predict(self, evaluation: Evaluation, plan: EditPlan = PLAIN) -> Tensor:
        rows, frames, _, h, w = evaluation.latents.shape
        x = evaluation.latents.to(self.device, self.network.dtype)
        text = torch.cat([self._text(prompt) for prompt in evaluation.prompts])
        label = torch.full((rows,), evaluation.label, device=self.device)
        with tapped(self.network, self, evaluation, plan):
            output = self.network(x, text, label, image_rotary_emb=self._turns(frames, h, w), return_dict=False)[0]
        return output.float()

    def _text(self, prompt: Prompt) -> Tensor:
        if prompt.frames != 1:
            raise ValueError(f"'{self.name}' takes one prompt for all frames, got {prompt.frames}")
        return embedding_for(prompt, 1, self.device, self.network.dtype)

    def _turns(self, frames: int, h: int, w: int) -> tuple[Tensor, Tensor] | None:
        """Cosines and sines [F h w, D] that a 5b turns queries and keys by; positions are those of the size that it was
        trained at, of which a clip of another shape takes a part."""
        from diffusers.models.embeddings import get_3d_rotary_pos_embed
        from diffusers.pipelines.cogvideo.pipeline_cogvideox import get_resize_crop_region_for_grid

        told = self.network.config
        if not told.use_rotary_positional_embeddings:
            return None
        grid = h // told.patch_size, w // told.patch_size
        base = told.sample_width // told.patch_size, told.sample_height // told.patch_size
        crop = get_resize_crop_region_for_grid(grid, *base)
        turns = get_3d_rotary_pos_embed(told.attention_head_dim, crop, grid, frames)
        return tuple(x.to(self.device, torch.float32) for x in turns)


def assemble_cogvideox(
    family: type[CogVideoX], name: str, parts: Parts, dtype: torch.dtype, memory: Memory, check: Callable[[], None]
) -> Backbone:
    """A `Backbone` of CogVideoX's parts. ValueError: they do not fit, or the network is another of its kind."""
    _require_known(parts.network, parts.vae, name)
    _fit_text(parts.network, parts.encoder, parts.tokenizer, name)
    make_schedule(parts.scheduler, 1)  # refused now rather than at the first edit
    codec = VideoCodec(name, parts.vae, memory, check, parts.network.config.patch_size, family.fewest_frames)
    nn.Module.to(parts.vae, vae_dtype(parts.vae, dtype, memory))  # only now: its fingerprint is of the file's weights
    denoiser = family(name, parts.network, codec.layout, parts.scheduler, memory)
    return Backbone(name, denoiser, codec, ClipText(parts.encoder, parts.tokenizer, memory))


def text_dtype(dtype: torch.dtype) -> torch.dtype:
    """Of T5, which overflows in float16."""
    return torch.bfloat16 if dtype == torch.float16 else dtype


def require_diffusers() -> None:
    """ValueError for a diffusers whose class is not yet the one that 5b needs."""
    import diffusers

    if tuple(int(n) for n in diffusers.__version__.split(".")[:2]) < (0, 31):
        raise ValueError(
            f"CogVideoX needs diffusers 0.31 or newer, this is {diffusers.__version__}: pip install -U diffusers"
        )


def _require_known(network: nn.Module, vae: nn.Module, name: str) -> None:
    told, latent = network.config, vae.config.latent_channels
    if getattr(told, "patch_size_t", None) is not None:
        raise ValueError(f"'{name}' is a CogVideoX 1.5, which is not supported: use CogVideoX 2b or 5b")
    if (told.in_channels, told.out_channels) != (latent, latent):
        raise ValueError(
            f"'{name}' takes {told.in_channels} channels and the latents have {latent}: image-to-video and inpainting "
            "models are not supported, use CogVideoX 2b or 5b"
        )


def _fit_text(network: nn.Module, encoder: nn.Module, tokenizer, name: str) -> None:
    wants, gives = network.config.text_embed_dim, encoder.config.d_model
    if wants != gives:
        raise ValueError(f"the network of '{name}' takes texts {wants} wide and its text encoder gives {gives}")
    if len(tokenizer) > encoder.config.vocab_size:
        raise ValueError(
            f"the tokenizer of '{name}' knows {len(tokenizer)} tokens and its text encoder "
            f"{encoder.config.vocab_size}: is one of them of another model?"
        )
    tokenizer.model_max_length = network.config.max_text_seq_length
