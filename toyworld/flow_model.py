"""Trains the flow model, a small LTX-Video, and samples from it: the run `flow`.

Rectified flow (Liu et al. 2022): x = (1 - t) clean + t noise, and the network predicts the velocity, noise - clean.
Latents, captions and masks lie on the device from the start, and noise is drawn there, so no step waits for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from . import ltx, text, world
from .dataset import CLIPS_SEED, PREFIXES
from .losses import diffusion_loss
from .training import Loss, Recipe, mixed, noise_source, train

CLIPS = 40000  # 5.9 GB of latents
BATCH = 128  # clips
SHIFT = 3.0  # the share of high noise: 8x8 cells of 128 channels drown late
HEARS = "video"  # whose text encoder it listens to: the one that tells a circle from a square


@dataclass
class FlowModel:
    """The parts that sampling needs; all on one device, in float32."""

    transformer: torch.nn.Module
    vae: torch.nn.Module
    tokenizer: object
    text_encoder: torch.nn.Module


def train_flow(recipe: Recipe, runs: Path, out: Path, clips: int = CLIPS) -> None:
    torch.manual_seed(recipe.seed)
    file = out / "flow" / ltx.FILE
    vae, transformer = ltx.load_vae(file), ltx.make_transformer()
    data = flow_set(vae.to(recipe.device), load_hearing(out), clips, recipe.device)
    train("flow", [transformer], flow_loss(transformer, data, recipe), recipe, runs)
    ltx.write(file, vae.cpu(), transformer)


def load_hearing(out: Path):
    """(tokenizer, text encoder), frozen."""
    from transformers import CLIPTextModel, CLIPTokenizer

    encoder = CLIPTextModel.from_pretrained(out / HEARS / "text_encoder").float()
    return CLIPTokenizer.from_pretrained(out / HEARS / "tokenizer"), encoder.eval().requires_grad_(False)


@dataclass
class FlowSet:
    """What the transformer is trained on."""

    latents: Tensor  # [n, 128, F, h, w] fp16
    cells: Tensor  # [n, 1, F, h, w] bool, where the sprite is
    caption: Tensor  # [n] index into `prompts`
    prompts: Tensor  # [captions, 1 + prefixes, tokens, width]; the last row of captions is the empty one


@torch.no_grad()
def flow_set(vae, hearing, clips: int, device: str) -> FlowSet:
    latents, cells, sentences = [], [], []
    for drawn, video, alpha in ltx.drawn(clips, CLIPS_SEED, device):
        latents += [ltx.encode(vae, part).half() for part in video.split(50)]
        cells.append(ltx.cells(alpha))
        sentences += world.captions(drawn)
    known = sorted(set(sentences))
    number = {sentence: k for k, sentence in enumerate(known)}
    tokenizer, encoder = hearing
    worded = [prefix + sentence for sentence in known for prefix in ("", PREFIXES[0])] + ["", ""]
    ids = text.token_ids(tokenizer, worded)
    prompts = torch.cat([encoder(part)[0] for part in ids.split(256)]).unflatten(0, (-1, 2))
    caption = torch.tensor([number[s] for s in sentences])
    return FlowSet(torch.cat(latents), torch.cat(cells), caption.to(device), prompts.to(device))


def shifted(u: Tensor) -> Tensor:
    """Times of 0..1 moved towards noise (Esser et al. 2024, eq. 23)."""
    return SHIFT * u / (1 + (SHIFT - 1) * u)


def flow_loss(transformer, data: FlowSet, recipe: Recipe) -> Loss:
    device, where = recipe.device, ltx.coordinates(*data.latents.shape[2:], recipe.device)

    def loss(step: int, _) -> dict[str, Tensor]:
        noise = noise_source(recipe, step)

        def uniform(*shape: int) -> Tensor:
            return torch.rand(shape, generator=noise, device=device)

        i = torch.randint(len(data.latents), (BATCH,), generator=noise, device=device)
        clean, cells = data.latents[i].float(), data.cells[i].float()
        # the batch is random, so strata in order are as good as strata at random
        t = shifted((torch.arange(BATCH, device=device) + uniform(BATCH)) / BATCH)
        caption = torch.where(uniform(BATCH) < 0.1, len(data.prompts) - 1, data.caption[i])
        prompts = data.prompts[caption, (uniform(BATCH) < 0.15).long()]
        e = torch.randn(clean.shape, generator=noise, device=device)
        share = t[:, None, None, None, None]
        with mixed(device):
            predicted = ltx.velocity(transformer, torch.lerp(clean, e, share), t, prompts, where)
        return diffusion_loss(predicted.float(), e - clean, cells, step, recipe.steps)

    return loss


# ---- sampling -------------------------------------------------------------------------------------------------------


def load_flow(folder: Path, device: str = "cpu") -> FlowModel:
    """The model in `folder`, whose text encoder lies beside it.

    Raises:
        FileNotFoundError: the folder holds no model.
    """
    tokenizer, encoder = load_hearing(folder.parent)
    file = folder / ltx.FILE
    parts = [part.to(device) for part in (ltx.load_transformer(file), ltx.load_vae(file), encoder)]
    return FlowModel(parts[0], parts[1], tokenizer, parts[2])


@torch.no_grad()
def sample_flow(model: FlowModel, captions: list[str], steps: int = 30, guidance: float = 4.0, seed: int = 0) -> Tensor:
    """Clips [n, 9, 3, 64, 64] in 0..1 on the CPU, one a caption: Euler's method with classifier-free guidance.

    The noise is drawn on the CPU, so a seed means the same clips on every device, up to rounding.
    """
    device, cell = next(model.transformer.parameters()).device, world.SIZE // ltx.PATCH
    shape = (len(captions), ltx.LATENT, ltx.FRAMES, cell, cell)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(device)
    where = ltx.coordinates(*shape[2:], device)
    ids = text.token_ids(model.tokenizer, [""] * len(captions) + captions)
    prompts = model.text_encoder(ids.to(device))[0]
    times = shifted(torch.linspace(1, 0, steps + 1))
    for now, then in pairwise(times):
        t = now.to(device).expand(2 * len(captions))
        unguided, guided = ltx.velocity(model.transformer, torch.cat([x, x]), t, prompts, where).chunk(2)
        x = x + (then - now).to(device) * (unguided + guidance * (guided - unguided))
    return ltx.decode(model.vae, x).cpu()
