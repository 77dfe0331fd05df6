"""LaVie's UNet (Wang et al. 2023): that of Stable Diffusion 1.4 with attention over time in every block of attention.

    source   the released base model's layers and names; 686 of its 830 tensors are named and sized as in 1.4

Frames go through it as a batch [(b f), C, h, w]. Two things know of the clip: attention over time, and the norms of
residual blocks and of the output, whose statistics are those of all frames together; those around attention are by
frame.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from .attention import Block

GROUPS = 32


@dataclass(frozen=True)
class Config:
    """Sizes of a network; the released one's by default."""

    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    layers_per_block: int = 2
    heads: int = 8
    cross_attention_dim: int = 768
    in_channels: int = 4
    out_channels: int = 4


class LaVieUNet(nn.Module):
    """eps [b F 4 h w] from latents, a time step and a text."""

    def __init__(self, config: Config = Config()):
        super().__init__()
        self.config, widths, last = config, config.block_out_channels, len(config.block_out_channels) - 1
        told = {"heads": config.heads, "context": config.cross_attention_dim, "embedding": 4 * widths[0]}
        self.conv_in = nn.Conv2d(config.in_channels, widths[0], 3, padding=1)
        self.time_embedding = TimeEmbedding(widths[0])
        down = zip((widths[0], *widths), widths, range(last + 1))
        self.down_blocks = nn.ModuleList(
            [Down(a, b, config.layers_per_block, i < last, i < last, **told) for a, b, i in down]
        )
        self.mid_block = Middle(widths[-1], **told)
        up = []
        for i, out in enumerate(reversed(widths)):
            before, after = widths[last - max(i - 1, 0)], widths[max(last - i - 1, 0)]
            up.append(Up(before, out, after, config.layers_per_block + 1, i > 0, i < last, **told))
        self.up_blocks = nn.ModuleList(up)
        self.conv_norm_out = ClipNorm(GROUPS, widths[0], eps=1e-5)
        self.conv_out = nn.Conv2d(widths[0], config.out_channels, 3, padding=1)

    @property
    def dtype(self) -> torch.dtype:
        return self.conv_in.weight.dtype

    def forward(self, clip: Tensor, time: float, text: Tensor) -> Tensor:
        """Args: clip [b F 4 h w], text [b or (b F), L, E]."""
        frames = clip.shape[1]
        embedding = self.time_embedding(time, clip).expand(len(clip) * frames, -1)
        x = self.conv_in(rearrange(clip, "b f c h w -> (b f) c h w"))
        skips = [x]
        for block in self.down_blocks:
            x, more = block(x, embedding, text, frames)
            skips += more
        x = self.mid_block(x, embedding, text, frames)
        for block in self.up_blocks:
            own = [skips.pop() for _ in block.resnets]
            x = block(x, own, embedding, text, frames, skips[-1].shape[-2:] if skips else None)
        x = self.conv_out(F.silu(self.conv_norm_out(x, frames)))
        return rearrange(x, "(b f) c h w -> b f c h w", f=frames)


class TimeEmbedding(nn.Module):
    """Sines of a time step, cosines first, through two layers."""

    def __init__(self, width: int):
        super().__init__()
        self.linear_1, self.linear_2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, 4 * width)

    def forward(self, time: float, like: Tensor) -> Tensor:
        """[1, 4 C]."""
        half = self.linear_1.in_features // 2
        slower = torch.exp(-math.log(10000) * torch.arange(half, device=like.device).float() / half)
        waves = torch.cat([(time * slower).cos(), (time * slower).sin()])[None].to(like.dtype)
        return self.linear_2(F.silu(self.linear_1(waves)))


class ClipNorm(nn.GroupNorm):
    """Group norm with the statistics of all frames of a clip together."""

    def forward(self, x: Tensor, frames: int) -> Tensor:
        normed = super().forward(rearrange(x, "(b f) c h w -> b c f h w", f=frames))
        return rearrange(normed, "b c f h w -> (b f) c h w")


class Residual(nn.Module):
    """Two convolutions, told the time step between them, added to what they read."""

    def __init__(self, width: int, out: int, embedding: int):
        super().__init__()
        self.norm1, self.conv1 = ClipNorm(GROUPS, width, eps=1e-5), nn.Conv2d(width, out, 3, padding=1)
        self.time_emb_proj = nn.Linear(embedding, out)
        self.norm2, self.conv2 = ClipNorm(GROUPS, out, eps=1e-5), nn.Conv2d(out, out, 3, padding=1)
        if width != out:
            self.conv_shortcut = nn.Conv2d(width, out, 1)

    def forward(self, x: Tensor, embedding: Tensor, frames: int) -> Tensor:
        y = self.conv1(F.silu(self.norm1(x, frames)))
        y = y + self.time_emb_proj(F.silu(embedding))[..., None, None]
        y = self.conv2(F.silu(self.norm2(y, frames)))
        return (self.conv_shortcut(x) if hasattr(self, "conv_shortcut") else x) + y


class Transformer(nn.Module):
    """A block of attention on the pixels of frames, added to what it reads."""

    def __init__(self, width: int, heads: int, context: int):
        super().__init__()
        self.norm = nn.GroupNorm(GROUPS, width, eps=1e-6)
        self.proj_in, self.proj_out = nn.Conv2d(width, width, 1), nn.Conv2d(width, width, 1)
        self.transformer_blocks = nn.ModuleList([Block(width, heads, context)])

    def forward(self, x: Tensor, text: Tensor, frames: int) -> Tensor:
        y = rearrange(self.proj_in(self.norm(x)), "b c h w -> b (h w) c")
        for block in self.transformer_blocks:
            y = block(y, text, frames)
        return x + self.proj_out(rearrange(y, "b (h w) c -> b c h w", h=x.shape[-2]))


class Resample(nn.Module):
    """Half the size, or another one, by way of a convolution."""

    def __init__(self, width: int, stride: int):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=stride, padding=1)

    def forward(self, x: Tensor, size: Sequence[int] | None = None) -> Tensor:
        return self.conv(x if size is None else F.interpolate(x, tuple(size), mode="nearest"))


class Down(nn.Module):
    """A stage of the encoder."""

    def __init__(
        self, width: int, out: int, layers: int, attends: bool, halves: bool, heads: int, context: int, embedding: int
    ):
        super().__init__()
        self.resnets = nn.ModuleList([Residual(width if i == 0 else out, out, embedding) for i in range(layers)])
        if attends:
            self.attentions = nn.ModuleList([Transformer(out, heads, context) for _ in range(layers)])
        self.downsamplers = nn.ModuleList([Resample(out, 2)] if halves else [])

    def forward(self, x: Tensor, embedding: Tensor, text: Tensor, frames: int) -> tuple[Tensor, list[Tensor]]:
        """(its output, what the decoder is given of it)."""
        skips = []
        for i, residual in enumerate(self.resnets):
            x = residual(x, embedding, frames)
            x = self.attentions[i](x, text, frames) if hasattr(self, "attentions") else x
            skips.append(x)
        for downsampler in self.downsamplers:
            x = downsampler(x)
            skips.append(x)
        return x, skips


class Middle(nn.Module):
    """The coarsest stage."""

    def __init__(self, width: int, heads: int, context: int, embedding: int):
        super().__init__()
        self.resnets = nn.ModuleList([Residual(width, width, embedding) for _ in range(2)])
        self.attentions = nn.ModuleList([Transformer(width, heads, context)])

    def forward(self, x: Tensor, embedding: Tensor, text: Tensor, frames: int) -> Tensor:
        x = self.attentions[0](self.resnets[0](x, embedding, frames), text, frames)
        return self.resnets[1](x, embedding, frames)


class Up(nn.Module):
    """A stage of the decoder, which is given the encoder's outputs of its size."""

    def __init__(
        self,
        before: int,
        width: int,
        after: int,
        layers: int,
        attends: bool,
        doubles: bool,
        heads: int,
        context: int,
        embedding: int,
    ):
        """Args: before, after: widths of the stage before this one, and of the encoder's next finer one."""
        super().__init__()
        reads = [(before if i == 0 else width) + (after if i == layers - 1 else width) for i in range(layers)]
        self.resnets = nn.ModuleList([Residual(n, width, embedding) for n in reads])
        if attends:
            self.attentions = nn.ModuleList([Transformer(width, heads, context) for _ in range(layers)])
        self.upsamplers = nn.ModuleList([Resample(width, 1)] if doubles else [])

    def forward(
        self, x: Tensor, skips: Sequence[Tensor], embedding: Tensor, text: Tensor, frames: int, size: torch.Size | None
    ) -> Tensor:
        """Args: size: of the encoder's next finer output, which upsampling goes to."""
        for i, (residual, skip) in enumerate(zip(self.resnets, skips)):
            x = residual(torch.cat([x, skip], 1), embedding, frames)
            x = self.attentions[i](x, text, frames) if hasattr(self, "attentions") else x
        for upsampler in self.upsamplers:
            x = upsampler(x, size)
        return x
