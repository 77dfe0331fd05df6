"""Trains the causal video VAE of the flow model: the run `flow_vae`.

Nothing waits for the device within a step: clips are rendered there, a pool at a time, and noise is drawn there.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from . import ltx
from .dataset import CLIPS_SEED
from .training import Loss, Recipe, mixed, noise_source, train

BATCH = 64  # clips
POOL, POOL_STEPS = 2048, 100  # clips in a pool, and how long it lasts
KL = 1e-3


def train_flow_vae(recipe: Recipe, runs: Path, out: Path) -> None:
    torch.manual_seed(recipe.seed)
    vae = ltx.make_vae()
    train("flow_vae", [vae], flow_vae_loss(vae, recipe), recipe, runs)
    vae.to(recipe.device)
    normalise(vae, recipe.device)
    ltx.write(out / "flow" / ltx.FILE, vae.cpu())


def flow_vae_loss(vae, recipe: Recipe) -> Loss:
    device = recipe.device

    @lru_cache(maxsize=1)
    def pool(epoch: int) -> Tensor:
        return torch.cat([v.half() for _, v, _ in ltx.drawn(POOL, CLIPS_SEED + epoch, device)])

    def loss(step: int, _) -> dict[str, Tensor]:
        videos, noise = pool(step // POOL_STEPS), noise_source(recipe, step)
        i = torch.randint(len(videos), (BATCH,), generator=noise, device=device)
        x = videos[i].float().transpose(1, 2) * 2 - 1
        with mixed(device):
            posterior = vae.encode(x).latent_dist
            mean, logvar = posterior.mean.float(), posterior.logvar.float()
            z = mean + (0.5 * logvar).exp() * torch.randn(mean.shape, generator=noise, device=device)
            y = vae.decode(z).sample.float()
        mse, l1 = (y - x).square().mean(), (y - x).abs().mean()
        kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
        return {"loss": mse + 0.2 * l1 + KL * kl, "mse": mse.detach(), "kl": kl.detach()}

    return loss


@torch.no_grad()
def normalise(vae, device: str, clips: int = 512) -> None:
    """Zero mean in each latent channel, and one scale for all: the channels that say little stay small, so that the
    transformer is not asked to draw what the decoder hardly reads."""
    means = [vae.encode(v.transpose(1, 2) * 2 - 1).latent_dist.mean for _, v, _ in ltx.drawn(clips, 5, device, 64)]
    z = torch.cat(means)
    vae.latents_mean.copy_(z.mean((0, 2, 3, 4)))
    vae.latents_std.fill_(z.var((0, 2, 3, 4)).mean().sqrt())
