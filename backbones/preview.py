"""Cheap pictures of latents while sampling: a quadratic map to RGB, fitted once on frames whose pixels are known.

An edit brings colors that its source never had, so the map learns from the source's frames in other colors as well.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from ..engine.autograd import plain_torch
from ..engine.ports import Backbone
from ..engine.source import Trajectory

FEW = 4  # frames that stand for a clip
FIRST = 3  # latent frames that stand for one of a 3-D VAE, as few as such a VAE decodes


def few(clip: Tensor, count: int = FEW) -> Tensor:
    """At most `count` frames of a clip [F, ...], spread from the first to the last."""
    if len(clip) <= count:
        return clip
    return clip[torch.linspace(0, len(clip) - 1, count).round().long().to(clip.device)]


class LatentPreview:
    """latents [F, C, h, w] -> frames [F, h, w, 3] in 0..1, good enough to see where an edit goes."""

    @plain_torch
    def __init__(self, backbone: Backbone, trajectory: Trajectory):
        clip, layout = trajectory.at(0), backbone.codec.layout
        # Latent frames that stand for several are decoded together with those before them, and the first are quickest.
        cells = few(clip) if layout.frames == 1 else clip[:FIRST]
        frames = backbone.codec.decode(backbone.codec.unscale(cells))
        if layout.frames == 1:
            recolored = _recolored(frames)
            cells = torch.cat([cells, backbone.codec.scale(backbone.codec.encode(recolored))])
            frames = torch.cat([frames, recolored])
        colors = F.interpolate(frames.movedim(-1, 1), cells.shape[-2:], mode="area")
        if layout.frames > 1:  # those of a latent frame are the mean of its frames
            spans = [layout.span(t) for t in range(len(cells))]
            colors = torch.stack([colors[span.start : span.stop].mean(0) for span in spans])
        x, y = _features(cells).flatten(0, 2), rearrange(colors, "f c h w -> (f h w) c")
        # A flat frame leaves directions undetermined; a little ridge sends them to zero.
        ridge = 1e-3 * len(x) * torch.eye(x.shape[1])
        self.weights = torch.linalg.solve(x.T @ x + ridge, x.T @ y)

    @plain_torch
    def __call__(self, latents: Tensor) -> Tensor:
        return (_features(latents.float().cpu()) @ self.weights).clamp(0, 1)


def _features(latents: Tensor) -> Tensor:
    """[F, C, h, w] -> [F, h, w, 1 + C + C (C + 1) / 2]: one, the channels and their products."""
    z = latents.movedim(1, -1)
    i, j = torch.triu_indices(z.shape[-1], z.shape[-1])
    return torch.cat([torch.ones_like(z[..., :1]), z, z[..., i] * z[..., j]], -1)


def _recolored(frames: Tensor) -> Tensor:
    """[5, H, W, 3]: frames, in turn, with their colors rolled, inverted, and both."""
    straight = [frames[k % len(frames)].roll(k, -1) for k in (1, 2)]
    inverted = [1 - frames[k % len(frames)].roll(k, -1) for k in (0, 1, 2)]
    return torch.stack([*straight, *inverted])
