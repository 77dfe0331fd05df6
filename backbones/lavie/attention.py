"""LaVie's attention: over a frame, to the text, and over the frames of each pixel, all in one block.

A layer has a `processor` that computes it, as those of diffusers have, so that the same taps fit. A layer over time
turns the first channels of queries and keys by their frame and adds a number by distance to the logits.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

TURNED = 32  # channels of a head that are turned
BASE = 10000.0
BUCKETS, FARTHEST = 32, 32  # of distances in time; half of the buckets for what comes later


class Attention(nn.Module):
    """Heads of softmax attention, to itself or to a context."""

    def __init__(self, width: int, heads: int, context: int | None = None):
        super().__init__()
        self.heads, self.scale = heads, (width // heads) ** -0.5
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(context or width, width, bias=False)
        self.to_v = nn.Linear(context or width, width, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(width, width), nn.Identity()])
        self.processor: Callable = plain_attention

    def set_processor(self, processor: Callable) -> None:
        self.processor = processor

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        return self.processor(self, x, context)


class TemporalAttention(Attention):
    """Attention over frames, which knows in which order they are."""

    def __init__(self, width: int, heads: int):
        super().__init__(width, heads)
        self.time_rel_pos_bias = RelativeBias(heads)
        self.rotary_emb = Turns()

    def placed(self, x: Tensor) -> Tensor:
        """Queries or keys [..., F, D], turned by their frame."""
        return turned(x)

    def logit_bias(self, frames: int) -> Tensor:
        """[H, F, F] that is added to the logits of query i and key j."""
        return self.time_rel_pos_bias(frames)


class RelativeBias(nn.Module):
    """A number by head and by how far apart two frames are, on a scale that is logarithmic far away (as in T5)."""

    def __init__(self, heads: int):
        super().__init__()
        self.relative_attention_bias = nn.Embedding(BUCKETS, heads)

    def forward(self, frames: int) -> Tensor:
        table = self.relative_attention_bias.weight
        return rearrange(table[buckets(frames, table.device)], "i j h -> h i j")


class Turns(nn.Module):
    """What a checkpoint holds of the turning, a constant. It is computed anew, as half precision would round it."""

    def __init__(self):
        super().__init__()
        self.register_buffer("freqs", frequencies())


def plain_attention(layer: Attention, x: Tensor, context: Tensor | None = None) -> Tensor:
    """What a layer gives where nobody else computes it: [B, M, C] -> [B, M, C]."""
    context = x if context is None else context
    projected = (layer.to_q(x), layer.to_k(context), layer.to_v(context))
    q, k, v = (rearrange(y, "b m (h d) -> b h m d", h=layer.heads) for y in projected)
    bias = None
    if isinstance(layer, TemporalAttention):
        q, k, bias = layer.placed(q), layer.placed(k), layer.logit_bias(x.shape[1]).to(q.dtype)
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=layer.scale)
    return layer.to_out[1](layer.to_out[0](rearrange(y, "b h m d -> b m (h d)")))


def frequencies(device: torch.device | None = None) -> Tensor:
    """[TURNED / 2] radians a frame, of each pair of channels."""
    return BASE ** (-torch.arange(0, TURNED, 2, device=device).float() / TURNED)


def turned(x: Tensor) -> Tensor:
    """x [..., F, D] with the first channels of frame f turned by f times the frequencies, pair by pair (Su et al.
    2021); angles in float32 at least."""
    kind = torch.promote_types(x.dtype, torch.float32)
    angles = torch.arange(x.shape[-2], device=x.device, dtype=kind)[:, None] * frequencies(x.device).to(kind)
    cos, sin = angles.cos(), angles.sin()
    first, second = x[..., :TURNED].to(kind).unflatten(-1, (-1, 2)).unbind(-1)
    pairs = torch.stack([first * cos - second * sin, second * cos + first * sin], -1).flatten(-2)
    return torch.cat([pairs.to(x.dtype), x[..., TURNED:]], -1)


def buckets(frames: int, device: torch.device | None = None) -> Tensor:
    """[F, F] which bucket the distance of query i and key j is in. On the CPU, as a logarithm that is a hair off would
    be another bucket."""
    at = torch.arange(frames)
    back = at[:, None] - at[None, :]
    half, exact = BUCKETS // 2, BUCKETS // 4
    far = back.abs().clamp(min=1).float()
    steps = (far / exact).log() / torch.tensor(FARTHEST / exact).log() * (half - exact)
    far = (exact + steps.long()).clamp(max=half - 1)
    return (torch.where(back < 0, half, 0) + torch.where(back.abs() < exact, back.abs(), far)).to(device)


class Block(nn.Module):
    """Attention over the frame, to the text and over time, then a feed-forward net, each added to what it reads."""

    def __init__(self, width: int, heads: int, context: int):
        super().__init__()
        self.norm1, self.attn1 = nn.LayerNorm(width), Attention(width, heads)
        self.norm2, self.attn2 = nn.LayerNorm(width), Attention(width, heads, context)
        self.norm_temp, self.attn_temp = nn.LayerNorm(width), TemporalAttention(width, heads)
        self.norm3, self.ff = nn.LayerNorm(width), FeedForward(width)

    def forward(self, x: Tensor, text: Tensor, frames: int) -> Tensor:
        """Args: x [(b f), N, C], text [b or (b f), L, E]."""
        x = x + self.attn1(self.norm1(x))
        text = text if len(text) == len(x) else repeat(text, "b l e -> (b f) l e", f=frames)
        x = x + self.attn2(self.norm2(x), text)
        pixels = rearrange(x, "(b f) n c -> (b n) f c", f=frames)
        pixels = pixels + self.attn_temp(self.norm_temp(pixels))
        x = rearrange(pixels, "(b n) f c -> (b f) n c", n=x.shape[1])
        return x + self.ff(self.norm3(x))


class FeedForward(nn.Module):
    """4 times as wide, gated."""

    def __init__(self, width: int):
        super().__init__()
        self.net = nn.ModuleList([Gate(width, 4 * width), nn.Identity(), nn.Linear(4 * width, width)])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.net:
            x = layer(x)
        return x


class Gate(nn.Module):
    """Half of a projection, times the other half's GELU."""

    def __init__(self, width: int, out: int):
        super().__init__()
        self.proj = nn.Linear(width, 2 * out)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.proj(x).chunk(2, -1)
        return value * F.gelu(gate)
