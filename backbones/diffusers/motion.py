"""AnimateDiff's motion modules and motion LoRAs, put into a Stable Diffusion 1.x: v1, v2 and v3.

The image model may be a diffusers folder or a single file, the motion module a diffusers folder (`MotionAdapter`) or
the file as it was released. The result is one frozen network; a motion LoRA is merged into its weights.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from ...engine.ports import Backbone
from ..memory import Memory, PlainMemory
from ..plain_words import in_plain_words
from .assembly import DType, assemble, dtype_of
from .loading import frozen_module, read_parts
from .model_folder import read_json
from .tensor_file import read_tensors
from .unet2d import UNet2D
from .unet_motion import UNetMotion

# The noise levels that all released motion modules were trained with; the rest is the image model's.
SCHEDULER = {
    "beta_schedule": "linear", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1, "clip_sample": False,
    "prediction_type": "epsilon", "rescale_betas_zero_snr": False, "timestep_spacing": "leading",
}  # fmt: skip
LEVELS = "scheduler_config.json"  # in the folder of one that was trained with others
POSITIONS = "pos_embed.pe"  # a table of sines, a constant
NORM = re.compile(r"down_blocks\.(\d+)\.motion_modules\.(\d+)\.(temporal_transformer\.)?norm\.weight")
LORA = re.compile(
    r"(?:unet\.)?(?P<layer>.*\bmotion_modules\..+?)\.(?:processor\.)?(?P<to>to_q|to_k|to_v|to_out)(?:\.0)?"
    r"(?:_lora\.|\.lora\.|\.lora_)(?P<side>down|up|A|B)(?:\.default)?\.weight"
)


@torch.inference_mode(False)
def load_animatediff(
    model: Path | str,
    motion: Path | str,
    *,
    loras: Sequence[tuple[Path, float]] = (),
    name: str | None = None,
    dtype: DType = "auto",
    memory: Memory | None = None,
    check: Callable[[], None] = lambda: None,
    tokenizer: Path | None = None,
) -> Backbone:
    """An image model with a motion module in it.

    Args:
        model: a Stable Diffusion 1.x, as `load_backbone` takes it.
        motion: a motion module: a diffusers folder, a .safetensors, or a .ckpt that holds nothing but tensors. A
            `scheduler_config.json` in the folder states its noise levels; else they are those of the released ones.
        loras: motion LoRAs and their strengths.

    Raises:
        ValueError: what `load_backbone` raises; a motion module or LoRA that is none, or of another image model.
    """
    model, motion, memory = Path(model), Path(motion), memory or PlainMemory()
    kind = dtype_of(dtype, memory)
    with in_plain_words(f"'{motion.name}'"):
        adapter, levels = _read_adapter(motion), _levels(motion)
    family, parts = read_parts(model, kind, tokenizer)
    if family.denoiser is not UNet2D:
        raise ValueError(f"'{model.name}' is a video model already: choose a Stable Diffusion 1.x for motion modules")
    network = _joined(parts.network, adapter, model.name, motion.name)
    for file, strength in loras:
        with in_plain_words(f"'{file.name}'"):
            network = _with_lora(network, file, strength)
    parts = replace(parts, network=network, scheduler=parts.scheduler | levels)
    return assemble(UNetMotion, name or f"{model.name} + {motion.name}", parts, kind, memory, check)


def _joined(unet: nn.Module, adapter: nn.Module, model: str, motion: str) -> nn.Module:
    """One network around the weights of both, which stay where they are."""
    from diffusers import UNetMotionModel

    takes = unet.config.in_channels
    if takes != unet.config.out_channels:
        raise ValueError(f"'{model}' takes {takes} channels: motion modules want a text-to-image Stable Diffusion 1.x")
    try:
        with torch.device("meta"):
            network = UNetMotionModel.from_unet2d(unet, adapter, load_weights=False)
        dtype = unet.dtype  # looked for among all modules
        motion_tensors = {name: tensor.to(dtype) for name, tensor in adapter.state_dict().items()}
        network.load_state_dict(unet.state_dict() | motion_tensors, assign=True)
    except (ValueError, RuntimeError) as error:
        raise ValueError(
            f"the motion module '{motion}' is not for '{model}': most are for Stable Diffusion 1.x ({str(error)[:200]})"
        ) from error
    return network.eval().requires_grad_(False)


# ---- motion modules -------------------------------------------------------------------------------------------------


def _read_adapter(path: Path) -> nn.Module:
    import diffusers

    if path.is_dir():
        return frozen_module(diffusers, "MotionAdapter", path)
    return _released(path)


def _levels(motion: Path) -> dict:
    """What a motion module says of the noise levels that it was trained with."""
    file = motion / LEVELS
    return read_json(file, "it states the noise levels") if file.is_file() else SCHEDULER


def _released(file: Path) -> nn.Module:
    """A motion module in one file, with its original names or diffusers'."""
    from diffusers import MotionAdapter
    from diffusers.loaders.single_file_utils import convert_animatediff_checkpoint_to_diffusers

    found = read_tensors(file)
    config = _config_of(file.name, found)
    tensors = {k: t for k, t in convert_animatediff_checkpoint_to_diffusers(found).items() if POSITIONS not in k}
    with torch.device("meta"):  # nothing is made of sizes that are not those of all tensors
        adapter = MotionAdapter(**config)
    want = {name: tensor.shape for name, tensor in adapter.state_dict().items() if POSITIONS not in name}
    if {name: tensor.shape for name, tensor in tensors.items()} != want:
        odd = sorted(set(want) ^ set(tensors)) or [n for n in sorted(want) if want[n] != tensors[n].shape]
        raise ValueError(
            f"'{file.name}' is not a motion module of AnimateDiff v1, v2 or v3: it differs at {odd[0]} (a motion LoRA "
            "goes into the other input)"
        )
    adapter = MotionAdapter(**config)
    adapter.load_state_dict(tensors, strict=False)  # but for the table
    return adapter.eval().requires_grad_(False)


def _config_of(name: str, found: dict[str, Tensor]) -> dict:
    """What a motion module is, by its tensors."""
    norms = [m for m in map(NORM.fullmatch, found) if m]
    if not norms:
        raise ValueError(f"'{name}' is not a motion module of AnimateDiff: it has no down_blocks.*.motion_modules")
    tables = [t for k, t in found.items() if k.endswith(("pos_encoder.pe", POSITIONS))]
    layers = 1 + max(int(m[2]) for m in norms)
    if layers > len(norms) or any(t.ndim != 3 or not t.numel() for t in tables):
        raise ValueError(f"'{name}' is not a motion module of AnimateDiff: its layers or its positions are no numbers")
    return {
        "block_out_channels": tuple(len(found[m[0]]) for m in norms if m[2] == "0"),
        "motion_layers_per_block": layers,
        "motion_max_seq_length": tables[0].shape[1] if tables else 32,
        "use_motion_mid_block": any(k.startswith("mid_block.") for k in found),
    }


# ---- motion LoRAs ---------------------------------------------------------------------------------------------------


def _with_lora(network: nn.Module, file: Path, strength: float) -> nn.Module:
    """The network with a motion LoRA merged into its weights by peft."""
    from peft import LoraConfig
    from peft.tuners.lora import LoraModel

    pairs = _pairs(file)
    layers = dict(network.named_modules())
    if strange := sorted(set(pairs) - set(layers)):
        raise ValueError(f"'{file.name}' is not for this motion module: there is no layer {strange[0]}")
    ranks = {layer: len(down) for layer, (down, _) in pairs.items()}
    for layer, (down, up) in pairs.items():
        gives, takes = layers[layer].weight.shape
        want = (ranks[layer], takes), (gives, ranks[layer])
        if (down.shape, up.shape) != want or not ranks[layer]:
            got = f"{list(down.shape)} and {list(up.shape)}"
            raise ValueError(f"'{file.name}' is of another size than this model at {layer}: it has {got}")
    config = LoraConfig(
        r=max(ranks.values()),
        lora_alpha=1,
        target_modules=list(pairs),
        rank_pattern=ranks,
        alpha_pattern={layer: rank * strength for layer, rank in ranks.items()},
    )
    with torch.random.fork_rng(devices=[]):  # it draws weights, which are then replaced
        wrapped = LoraModel(network, {"default": config}, "default")
    for layer, (down, up) in pairs.items():
        added = network.get_submodule(layer)
        added.lora_A["default"].weight.data.copy_(down)
        added.lora_B["default"].weight.data.copy_(up)
    return wrapped.merge_and_unload(progressbar=False).eval().requires_grad_(False)


def _pairs(file: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """{layer of the network: (down [rank, in], up [out, rank])}."""
    from diffusers.loaders.single_file_utils import convert_animatediff_checkpoint_to_diffusers

    sides: dict[str, dict[str, Tensor]] = {}
    for name, tensor in convert_animatediff_checkpoint_to_diffusers(read_tensors(file)).items():
        if found := LORA.fullmatch(name):
            to = "to_out.0" if found["to"] == "to_out" else found["to"]
            side = {"A": "down", "B": "up"}.get(found["side"], found["side"])
            sides.setdefault(f"{found['layer']}.{to}", {})[side] = tensor.float()
    if not sides or any(len(pair) != 2 for pair in sides.values()):
        raise ValueError(f"'{file.name}' is not a motion LoRA: want pairs of down and up for layers of motion modules")
    return {layer: (pair["down"], pair["up"]) for layer, pair in sides.items()}
