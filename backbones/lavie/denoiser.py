"""LaVie as a `Denoiser`, from its released file."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from ...engine.call import Evaluation
from ...engine.plan import PLAIN, EditPlan
from ..diffusers.taps import tapped
from ..diffusers.tensor_file import read_tensors
from ..diffusers.text import embedding_for
from ..diffusers.unet import DiffusersUNet
from .attention import frequencies
from .network import GROUPS, Config, LaVieUNet

FILES = ("lavie_base.pt", "lavie_base.safetensors")
TABLE = "attn_temp.time_rel_pos_bias.relative_attention_bias.weight"
CONSTANT = "rotary_emb.freqs"
# The noise levels that it was trained with; the rest is Stable Diffusion 1.4's.
SCHEDULER = {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02, "prediction_type": "epsilon"}


class LaVie(DiffusersUNet):
    """See `Denoiser`. A prompt may have one embedding for all frames or one per frame."""

    def predict(self, evaluation: Evaluation, plan: EditPlan = PLAIN) -> Tensor:
        frames = evaluation.latents.shape[1]
        x = evaluation.latents.to(self.device, self.network.dtype)
        text = torch.cat([embedding_for(p, frames, self.device, self.network.dtype) for p in evaluation.prompts])
        with tapped(self.network, self, evaluation, plan):
            return self.network(x, evaluation.label, text).float()


def released_file(folder: Path) -> Path | None:
    """LaVie's file in a folder, if there is one."""
    return next((folder / name for name in FILES if (folder / name).is_file()), None)


def read_network(file: Path, dtype: torch.dtype) -> nn.Module:
    """The network of a file, with all its weights frozen; no more is made than the file holds.

    Raises:
        ValueError: no such file, a pickle that holds more than tensors, or tensors of another network.
    """
    found = read_tensors(file)
    config = _config_of(file.name, found)
    with torch.device("meta"):
        network = LaVieUNet(config)
    want = network.state_dict()
    found = {name: tensor for name, tensor in found.items() if not name.endswith(CONSTANT)}
    found |= {name: frequencies() for name in want if name.endswith(CONSTANT)}
    if odd := sorted(set(want) ^ set(found)) or [n for n in want if want[n].shape != found[n].shape]:
        raise ValueError(
            f"'{file.name}' is not LaVie's base model: of the {len(want)} tensors of one with its sizes, {len(odd)} "
            f"are missing, beyond them or of another shape, {odd[0]} among them"
        )
    network.load_state_dict({name: tensor.to(dtype) for name, tensor in found.items()}, assign=True)
    return network.eval().requires_grad_(False)


def _config_of(name: str, found: dict[str, Tensor]) -> Config:
    """The sizes of a network, by its tensors."""
    first = "down_blocks.0.attentions.0.transformer_blocks.0."
    try:
        widths = tuple(len(found[f"down_blocks.{i}.resnets.0.conv2.weight"]) for i in range(4))
        heads = found[first + TABLE].shape[1]
        config = Config(widths, 2, heads, found[f"{first}attn2.to_k.weight"].shape[1])
    except (KeyError, IndexError) as error:
        raise ValueError(f"'{name}' is not LaVie's base model: it lacks {error}") from error
    if any(width % GROUPS or width % heads for width in widths):
        raise ValueError(f"'{name}' is not LaVie's base model: widths of {widths} for {heads} heads")
    return config
