"""Cheap pictures of latents while sampling: a linear map to RGB, fitted once on frames whose pixels are known."""

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
        frames = backbone.codec.decode(backbone.codec.unscale(cells)).movedim(-1, 1)
        frames = frames[[layout.span(t)[-1] for t in range(len(cells))]]
        colors = F.interpolate(frames, cells.shape[-2:], mode="area")
        spans = [backbone.codec.layout.span(t) for t in range(len(cells))]
        colors = torch.stack([colors[span.start : span.stop].mean(0) for span in spans])  # those of a latent frame
        x, y = rearrange(cells, "f c h w -> (f h w) c"), rearrange(colors, "f c h w -> (f h w) c")
        x = torch.cat([x, torch.ones(len(x), 1)], 1)
        # A flat frame leaves directions undetermined; a little ridge sends them to zero.
        ridge = 1e-3 * len(x) * torch.eye(x.shape[1])
        self.weights = torch.linalg.solve(x.T @ x + ridge, x.T @ y)

    @plain_torch
    def __call__(self, latents: Tensor) -> Tensor:
        z = rearrange(latents.float().cpu(), "f c h w -> f h w c")
        return (z @ self.weights[:-1] + self.weights[-1]).clamp(0, 1)
