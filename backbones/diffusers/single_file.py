"""Single-file checkpoints of Stable Diffusion 1.x and 2.x and InstructPix2Pix, in their original names.

A checkpoint holds weights and says nothing of itself. How each model is built is in `configs/`, but for widths, which
are read off the tensors; diffusers' own converters give the tensors the names of its classes, and every one of them
must be there, in the right shape, and no other. Only safetensors are read: other checkpoints are pickles.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from .assembly import Parts
from .model_folder import Weights, sizes_in

CONFIGS = Path(__file__).with_name("configs")
UNET, VAE, TEXT = "model.diffusion_model.", "first_stage_model.", "cond_stage_model."
OPEN_CLIP = f"{TEXT}model."  # the text encoder of 2.x; that of 1.x is called as transformers calls it
HEAD = 64  # channels of an attention head in 2.x, and in CLIP
SURE_V = 0.09  # see `_predicts_v`
LAST_NORM = f"{UNET}output_blocks.11.1.transformer_blocks.0.norm1.bias"
PADDING = "!"  # what 2.x was trained to see after a text's end
Sizes = Mapping[str, tuple[int, ...]]


def read_checkpoint(file: Path, tokenizer: Callable[[], object], dtype: torch.dtype) -> Parts:
    """The parts of a checkpoint.

    Args:
        tokenizer: makes CLIP's.

    Raises:
        ValueError: no safetensors, cut off, no Stable Diffusion 1.x or 2.x, or one that lacks a part or a tensor.
    """
    from safetensors import safe_open

    if file.suffix != ".safetensors":
        raise ValueError(f"'{file.name}' may be a pickle, which could run code: use a .safetensors file of this model")
    sizes = sizes_in(Weights((file,), None, True))
    kind = _kind(file.name, sizes)
    config = _fitted(file.name, json.loads((CONFIGS / f"{kind}.json").read_text()), sizes)
    with safe_open(file, framework="pt") as opened:

        def under(prefix: str) -> dict[str, Tensor]:
            return {name: opened.get_tensor(name) for name in sizes if name.startswith(prefix)}

        network = _unet(file.name, under(UNET), config["unet"], dtype)
        vae = _vae(file.name, under(VAE), config["vae"])
        encoder = _text_encoder(file.name, under(TEXT), config["text_encoder"], kind)
        if kind == "sd2" and _predicts_v(opened, sizes):
            config["scheduler"]["prediction_type"] = "v_prediction"
        if "ztsnr" in sizes:  # trained down to pure noise, as some checkpoints say by an empty tensor of that name
            config["scheduler"] |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    words = tokenizer()
    if kind == "sd2":
        words.pad_token = PADDING
    return Parts(network, vae, encoder, words, config["scheduler"])


def _kind(name: str, sizes: Sizes) -> str:
    """ "sd1" or "sd2", by the text encoder."""
    if any(key.startswith("conditioner.embedders.") for key in sizes):
        raise ValueError(f"'{name}' is an SDXL checkpoint, which is not supported: use Stable Diffusion 1.x or 2.x")
    parts = {"network": UNET, "VAE": VAE, "text encoder": TEXT}
    lacking = [part for part, prefix in parts.items() if not any(key.startswith(prefix) for key in sizes)]
    if "network" in lacking:
        raise ValueError(
            f"'{name}' is no checkpoint of Stable Diffusion 1.x or 2.x, or InstructPix2Pix: it has no {UNET}* tensors. "
            "Of other models use the diffusers folder"
        )
    if lacking:
        raise ValueError(f"'{name}' has no {' and no '.join(lacking)}: use a checkpoint with all three parts in it")
    return "sd2" if any(key.startswith(OPEN_CLIP) for key in sizes) else "sd1"


def _fitted(name: str, config: dict, sizes: Sizes) -> dict:
    """A config with the widths of the tensors. ValueError where a tensor that tells one is missing."""

    def size(key: str) -> tuple[int, ...]:
        if key not in sizes:
            raise ValueError(f"'{name}' lacks the tensor {key}: is it another model, or cut off?")
        return sizes[key]

    unet, vae, text = config["unet"], config["vae"], config["text_encoder"]
    widths = [size(f"{UNET}input_blocks.{i}.0.out_layers.3.weight")[0] for i in (1, 4, 7, 10)]
    unet["block_out_channels"], unet["in_channels"] = widths, size(f"{UNET}input_blocks.0.0.weight")[1]
    unet["cross_attention_dim"] = size(f"{UNET}input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight")[1]
    vae["block_out_channels"] = [size(f"{VAE}encoder.down.{i}.block.0.conv1.weight")[0] for i in range(4)]
    if isinstance(unet["attention_head_dim"], list):
        unet["attention_head_dim"] = [max(1, width // HEAD) for width in widths]
        words, places = size(f"{OPEN_CLIP}token_embedding.weight"), size(f"{OPEN_CLIP}positional_embedding")
        wide = size(f"{OPEN_CLIP}transformer.resblocks.0.mlp.c_fc.weight")[0]
        layers = _count(sizes, f"{OPEN_CLIP}transformer.resblocks.") - 1  # the last is not used (2.x's own choice)
    else:
        clip = f"{TEXT}transformer.text_model."
        words, places = (size(f"{clip}embeddings.{n}_embedding.weight") for n in ("token", "position"))
        wide = size(f"{clip}encoder.layers.0.mlp.fc1.weight")[0]
        layers = _count(sizes, f"{clip}encoder.layers.")
    heads = max(1, words[1] // HEAD)
    told = {"vocab_size": words[0], "hidden_size": words[1], "max_position_embeddings": places[0]}
    text |= told | {"intermediate_size": wide, "num_hidden_layers": layers, "num_attention_heads": heads}
    return config


def _count(sizes: Sizes, prefix: str) -> int:
    """How many numbered layers there are under a prefix."""
    return len({key[len(prefix) :].split(".")[0] for key in sizes if key.startswith(prefix)})


def _predicts_v(opened, sizes: Sizes) -> bool:
    """Whether a 2.x was trained to predict v: some say so by an empty tensor; of others ComfyUI goes by the spread of
    one bias, which is larger in all that do."""
    if "v_pred" in sizes:
        return True
    return LAST_NORM in sizes and opened.get_tensor(LAST_NORM).float().std(correction=0).item() > SURE_V


# ---- parts ----------------------------------------------------------------------------------------------------------


def _unet(name: str, tensors: dict[str, Tensor], config: dict, dtype: torch.dtype) -> nn.Module:
    from diffusers import UNet2DConditionModel
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    _require_blocks(name, tensors)
    return _filled(name, UNet2DConditionModel, config, convert_ldm_unet_checkpoint(tensors, config), dtype)


def _require_blocks(name: str, tensors: Mapping[str, Tensor]) -> None:
    """diffusers' converter counts blocks and trusts that there are 12 on each side and 3 between."""
    for block, want in (("input_blocks.", 12), ("middle_block.", 3), ("output_blocks.", 12)):
        if (got := _count(tensors, UNET + block)) != want:
            raise ValueError(
                f"the network in '{name}' has {got} {block[:-1]} and Stable Diffusion 1.x and 2.x have {want}: it is "
                "of another kind"
            )


def _vae(name: str, tensors: dict[str, Tensor], config: dict) -> nn.Module:
    from diffusers import AutoencoderKL
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    return _filled(name, AutoencoderKL, config, convert_ldm_vae_checkpoint(tensors, config), torch.float32)


def _text_encoder(name: str, tensors: dict[str, Tensor], config: dict, kind: str) -> nn.Module:
    import transformers
    from diffusers.loaders.single_file_utils import convert_ldm_clip_checkpoint, convert_open_clip_checkpoint

    told = transformers.CLIPTextConfig(**config)
    with torch.device("meta"):  # nothing is made of sizes that are not those of all tensors
        module = transformers.CLIPTextModel(told)
    if kind == "sd2":
        tensors = {k: t for k, t in tensors.items() if f"resblocks.{config['num_hidden_layers']}." not in k}
        found = convert_open_clip_checkpoint(module, tensors, OPEN_CLIP)
    else:
        found = convert_ldm_clip_checkpoint(tensors)
    found = {key.removeprefix("text_model."): tensor.float() for key, tensor in found.items()}
    own = {key.removeprefix("text_model."): key for key in module.state_dict()}  # newer versions have no such level
    beside = ("embeddings.position_ids", "text_projection.weight", "logit_scale")
    found = {own.get(key, key): tensor for key, tensor in found.items() if key in own or key not in beside}
    _require_all(name, module, found)
    with torch.random.fork_rng(devices=[]):  # it draws weights, which are then replaced
        module = transformers.CLIPTextModel(told)
    module.load_state_dict(found)
    return module.eval().requires_grad_(False)


def _filled(name: str, kind: type, config: dict, found: dict[str, Tensor], dtype: torch.dtype) -> nn.Module:
    """A network of diffusers with these tensors; nothing of its size is made but them."""
    with torch.device("meta"):
        module = kind.from_config(config)
    _require_all(name, module, found)
    module.load_state_dict({key: tensor.to(dtype) for key, tensor in found.items()}, assign=True)
    return module.eval().requires_grad_(False)


def _require_all(name: str, module: nn.Module, found: Mapping[str, Tensor]) -> None:
    """Refuses what is not exactly the tensors of a module."""
    kind, want = type(module).__name__, module.state_dict()
    if lacking := sorted(set(want) - set(found)):
        raise ValueError(f"'{name}' lacks {len(lacking)} of the tensors of a {kind}, {lacking[0]} among them")
    if beyond := sorted(set(found) - set(want)):
        raise ValueError(f"'{name}' has {len(beyond)} tensors that a {kind} has not, {beyond[0]} among them")
    for key, tensor in found.items():
        if tensor.shape != want[key].shape:
            shapes = f"{list(tensor.shape)} and a {kind} has it {list(want[key].shape)}"
            raise ValueError(f"in '{name}' the tensor {key} is {shapes}: it is another model")
