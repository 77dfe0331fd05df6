"""Trains the motion adapter, which makes a video model of the image model `epsilon`: the runs `motion` and `paths`.

As in AnimateDiff (Guo et al. 2024): motion modules, temporal attention at each pixel, go after the layers of the image
network, which stays as it is; they alone are trained, on clips, with the image model's own noise levels. Their last
layers start at zero, so the first step is that of the image model on each frame.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from torch import Tensor, nn

from ..backbones.diffusers.unet_motion import repeats_text
from . import text
from .dataset import PREFIXES, scene_set
from .losses import sprite_weight
from .training import SCHEDULER, Loss, Recipe, add_noise, alpha_bars, stratified_timesteps, train
from .vae import CRISP

BASE = "epsilon"  # the image model, which the adapter is for
CLIPS = 800  # seen both ways round
BATCH = 4  # clips
HEADS = 2
LIFT = 25.0  # most that a noise level counts


def make_adapter():
    """Motion modules for the toy image model, 0.4 M parameters, which start as the identity."""
    from diffusers import MotionAdapter

    adapter = MotionAdapter(
        block_out_channels=(32, 64),
        motion_layers_per_block=1,
        motion_num_attention_heads=HEADS,
        motion_norm_num_groups=8,
        motion_max_seq_length=32,
    )
    for name, module in adapter.named_modules():
        if name.endswith("proj_out"):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
    return adapter


def make_network(unet, adapter):
    """The image network with the motion modules in it; only they are to be trained."""
    from diffusers import UNetMotionModel

    network = UNetMotionModel.from_unet2d(unet, adapter)
    network.freeze_unet2d_params()
    return network


def train_motion(recipe: Recipe, runs: Path, out: Path, clips: int = CLIPS) -> None:
    from diffusers import UNet2DConditionModel

    torch.manual_seed(recipe.seed)
    unet = UNet2DConditionModel.from_pretrained(out / BASE / "unet", torch_dtype=torch.float32)
    network = make_network(unet, make_adapter())
    data = scene_set(out / CRISP, runs, clips, recipe.device)
    train("motion", [network], motion_loss(network, hearing(out, data[2]), recipe, data), recipe, runs)
    save_adapter(network, out / "motion")


def train_paths(recipe: Recipe, runs: Path, out: Path, clips: int = CLIPS) -> None:
    """The adapter on, with sprites in every clip: backgrounds hold still by now, and where a sprite goes is learned
    last."""
    torch.manual_seed(recipe.seed)
    network = load_motion(out / "motion").unet
    data = scene_set(out / CRISP, runs, clips, recipe.device)
    kept = data[1].flatten(1).any(1).nonzero()[:, 0]
    moving = data[0][kept], data[1][kept], [data[2][k] for k in kept.tolist()]
    train("paths", [network], motion_loss(network, hearing(out, moving[2]), recipe, moving), recipe, runs)
    save_adapter(network, out / "motion")


def save_adapter(network, folder: Path) -> None:
    """diffusers' folder of a `MotionAdapter` in fp16, and in it the noise levels that it was trained with."""
    from diffusers import DDIMScheduler

    adapter, tensors = make_adapter(), network.state_dict()
    adapter.load_state_dict({name: tensors[name] for name in adapter.state_dict()})
    shutil.rmtree(folder, ignore_errors=True)
    adapter.half().save_pretrained(folder)
    DDIMScheduler(**SCHEDULER | {"prediction_type": "epsilon"}).save_pretrained(folder)


def per_frame(texts: Tensor, frames: int) -> Tensor:
    """Texts of clips [n, tokens, width] as the network of this diffusers takes them."""
    return texts if repeats_text() else texts.repeat_interleave(frames, 0)


def load_motion(folder: Path, device: str = "cpu"):
    """The pipeline of the image model, which lies beside the adapter's folder, with the motion modules in its network.

    Raises:
        FileNotFoundError: the folder holds no adapter.
    """
    from diffusers import DiffusionPipeline, MotionAdapter

    if not (folder / "config.json").exists():
        raise FileNotFoundError(f"no model in {folder}: train it with python -m weft.toyworld.train {folder.name}")
    pipeline = DiffusionPipeline.from_pretrained(folder.parent / BASE, torch_dtype=torch.float32)
    adapter = MotionAdapter.from_pretrained(folder, torch_dtype=torch.float32)
    pipeline.unet = make_network(pipeline.unet, adapter).eval()
    return pipeline.to(device)


@torch.no_grad()
def hearing(out: Path, sentences: list[str]) -> Tensor:
    """[n + 1, 1 + prefixes, tokens, width]: what the image model's text encoder makes of each caption, of the empty one
    at last."""
    from transformers import CLIPTextModel, CLIPTokenizer

    encoder = CLIPTextModel.from_pretrained(out / BASE / "text_encoder").float().eval()
    tokenizer = CLIPTokenizer.from_pretrained(out / BASE / "tokenizer")
    worded = [prefix + s for s in sentences for prefix in ("", PREFIXES[0])] + ["", ""]
    ids = text.token_ids(tokenizer, worded)
    return torch.cat([encoder(part)[0] for part in ids.split(256)]).unflatten(0, (-1, 2))


def motion_loss(network, prompts: Tensor, recipe: Recipe, data: tuple[Tensor, Tensor, list[str]]) -> Loss:
    """The loss on the noise of clips.

    Frames must agree on a picture while there is much noise; later the image model sees it in each. So noisy levels are
    drawn more often, in proportion to their number, and errors count as those of v: by one over the share of signal, at
    most by `LIFT`. To the end a sprite counts 5 times: where it is next is what is hard.
    """
    latents, cells, _ = data
    alpha_bar = alpha_bars()

    def loss(step: int, generator: torch.Generator) -> dict[str, Tensor]:
        i = torch.randint(len(latents), (BATCH,), generator=generator)
        x, m = latents[i].float(), cells[i][:, :, None].float()
        flip = torch.rand(BATCH, 1, 1, 1, 1, generator=generator) < 0.5  # time reversal doubles the paths
        x, m = (torch.where(flip, a.flip(1), a).transpose(1, 2) for a in (x, m))
        prefix = (torch.rand(BATCH, generator=generator) < 0.15).long()
        caption = torch.where(torch.rand(BATCH, generator=generator) < 0.1, len(prompts) - 1, i)
        t = (1000 * (stratified_timesteps(BATCH, generator) / 1000).sqrt()).long()
        noise = torch.randn(x.shape, generator=generator)
        noised, _ = add_noise(x, t, noise, alpha_bar)
        counts = (1 / alpha_bar[t]).clamp(max=LIFT).view(-1, 1, 1, 1, 1) * sprite_weight(m, 0, recipe.steps)
        told = per_frame(prompts[caption, prefix], x.shape[2])
        noised, noise, counts, t, told = (a.to(recipe.device) for a in (noised, noise, counts, t, told))
        squared = (network(noised, t, told).sample - noise).square()
        return {"loss": (squared * counts).mean(), "mse": squared.detach().mean()}

    return loss
