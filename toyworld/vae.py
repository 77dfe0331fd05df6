"""The VAE that the diffusion models share, and its training: frames <-> latents."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from . import scenes, world
from .dataset import CLIPS_SEED
from .models import make_vae
from .training import Recipe, train

CRISP = "crisp"  # folder of the VAE that the models of scenes have
CRISP_BATCH = 48
ROUGH = 0.03  # noise on the latents, whose deviation is 1: those that a model makes are not quite the encoder's


def train_vae(recipe: Recipe, runs: Path, out: Path) -> None:
    torch.manual_seed(recipe.seed)
    vae = make_vae()

    @lru_cache(maxsize=1)
    def frames(epoch: int) -> Tensor:
        clips = world.draw(384, torch.Generator().manual_seed(CLIPS_SEED + epoch))
        return world.render(clips)[0].flatten(0, 1) * 2 - 1

    def loss(step: int, generator: torch.Generator) -> dict[str, Tensor]:
        pool = frames(step // 300)
        crops = step < 0.7 * recipe.steps  # crops first: four times as many gradients a second
        x = pool[torch.randint(len(pool), (64 if crops else 24,), generator=generator)]
        if crops:
            top, left = torch.randint(0, 33, (2,), generator=generator).tolist()
            x = x[:, :, top : top + 32, left : left + 32]
        x = x.to(recipe.device)
        posterior = vae.encode(x).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=generator).to(recipe.device)
        y = vae.decode(posterior.mean + posterior.std * noise).sample
        mse, l1 = (y - x).square().mean(), (y - x).abs().mean()
        kl = 0.5 * (posterior.mean.square() + posterior.var - 1 - posterior.logvar).mean()
        return {"loss": mse + 0.2 * l1 + 1e-4 * kl, "mse": mse.detach()}

    train("vae", [vae], loss, recipe, runs)
    whiten(vae)
    vae.save_pretrained(out / "vae")


def train_crisp(recipe: Recipe, runs: Path, out: Path) -> None:
    """The VAE on, with scenes of two sprites too. Its latents change, so it is a VAE beside the first: that of the
    models which know such scenes."""
    from diffusers import AutoencoderKL

    torch.manual_seed(recipe.seed)
    vae = AutoencoderKL.from_pretrained(out / "vae", torch_dtype=torch.float32)

    @lru_cache(maxsize=1)
    def frames(epoch: int) -> Tensor:
        drawn = scenes.draw(192, torch.Generator().manual_seed(CLIPS_SEED + epoch))
        return scenes.render(drawn)[0].flatten(0, 1) * 2 - 1

    def loss(step: int, generator: torch.Generator) -> dict[str, Tensor]:
        pool = frames(step // 400)
        x = pool[torch.randint(len(pool), (CRISP_BATCH,), generator=generator)].to(recipe.device)
        posterior = vae.encode(x).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=generator).to(recipe.device)
        y = vae.decode(posterior.mean + ROUGH * noise).sample
        mse, l1 = (y - x).square().mean(), (y - x).abs().mean()
        near_unit = 0.5 * (posterior.mean.square().mean() - 1).square()  # so that the latents keep their size
        return {"loss": mse + 0.05 * l1 + 1e-2 * near_unit, "mse": mse.detach()}

    train(CRISP, [vae], loss, recipe, runs)
    whiten(vae)
    vae.half().save_pretrained(out / CRISP)


@torch.no_grad()
def whiten(vae) -> None:
    """Folds zero mean and unit variance of each latent channel into the two 1x1 convolutions; exact."""
    clips = world.render(world.draw(64, torch.Generator().manual_seed(5)))[0]
    z = vae.encode(clips.flatten(0, 1) * 2 - 1).latent_dist.mean
    mean, std = z.mean((0, 2, 3)), z.std((0, 2, 3))
    into, outof = vae.quant_conv, vae.post_quant_conv
    outof.bias += outof.weight[:, :, 0, 0] @ mean
    outof.weight *= std[None, :, None, None]
    into.bias[:4] = (into.bias[:4] - mean) / std
    into.weight[:4] /= std[:, None, None, None]
    into.bias[4:] -= 2 * std.log()
