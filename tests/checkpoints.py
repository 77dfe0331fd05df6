"""Single-file checkpoints of random weights under their original names, and the same models in diffusers' classes.

The names are written out here by hand, as the original code has them, and not by turning any converter around.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import torch

from weft.backbones.diffusers.single_file import CONFIGS
from weft.tests.tiny import spread

WIDTHS, VAE_WIDTHS, TEXT_WIDTH, TEXT_LAYERS = (32, 64, 64, 64), (32, 32, 32, 32), 64, 2
TOP = {
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2", "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0", "conv_out": "out.2",
}  # fmt: skip
RESIDUAL = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
    "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}  # fmt: skip
PLACE = re.compile(
    r"(?P<half>down|mid|up)_blocks?\.?(?P<i>\d*)\.(?P<list>resnets|attentions|downsamplers|upsamplers)\.(?P<j>\d+)\."
    r"(?P<rest>.*)"
)


def unet_name(name: str) -> str:
    """A tensor of `UNet2DConditionModel` as the original calls it."""
    found = PLACE.match(name)
    if found is None:
        module, end = name.rsplit(".", 1)
        return f"model.diffusion_model.{TOP[module]}.{end}"
    half, i, j, kind, rest = found["half"], int(found["i"] or 0), int(found["j"]), found["list"], found["rest"]
    if kind == "resnets":
        first, end = rest.rsplit(".", 1)
        rest = f"{RESIDUAL[first]}.{end}"
    if half == "mid":
        where = f"middle_block.{1 if kind == 'attentions' else 2 * j}"
    elif kind == "downsamplers":
        where, rest = f"input_blocks.{3 * i + 3}.0", rest.replace("conv", "op")
    elif half == "down":
        where = f"input_blocks.{3 * i + j + 1}.{1 if kind == 'attentions' else 0}"
    elif kind == "upsamplers":
        where = f"output_blocks.{3 * i + 2}.{1 if i == 0 else 2}"
    else:
        where = f"output_blocks.{3 * i + j}.{1 if kind == 'attentions' else 0}"
    return f"model.diffusion_model.{where}.{rest}"


def vae_name(name: str) -> str:
    """A tensor of `AutoencoderKL` as the original calls it."""
    name = name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
    for ours, theirs in {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}.items():
        name = name.replace(f"mid_block.attentions.0.{ours}", f"mid.attn_1.{theirs}")
    name = re.sub(r"down_blocks\.(\d)\.resnets\.(\d)", r"down.\1.block.\2", name)
    name = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", name)
    name = re.sub(r"up_blocks\.(\d)\.resnets\.(\d)", lambda m: f"up.{3 - int(m[1])}.block.{m[2]}", name)
    name = re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{3 - int(m[1])}.upsample", name)
    return f"first_stage_model.{name}"


def make_parts(kind: str, tokenizer, channels: int = 4, tokens: int = 16):
    """(UNet, VAE, text encoder) of "sd1" or "sd2", narrow."""
    import diffusers
    import transformers

    config = json.loads((CONFIGS / f"{kind}.json").read_text())
    unet = config["unet"] | {"block_out_channels": WIDTHS, "in_channels": channels, "cross_attention_dim": TEXT_WIDTH}
    if kind == "sd2":
        unet["attention_head_dim"] = [1, 1, 1, 1]
    text = config["text_encoder"] | {"vocab_size": len(tokenizer), "hidden_size": TEXT_WIDTH, "num_attention_heads": 1}
    text |= {"intermediate_size": 96, "num_hidden_layers": TEXT_LAYERS, "max_position_embeddings": tokens}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return (
            diffusers.UNet2DConditionModel.from_config(unet).eval(),
            diffusers.AutoencoderKL.from_config(config["vae"] | {"block_out_channels": VAE_WIDTHS}).eval(),
            transformers.CLIPTextModel(transformers.CLIPTextConfig(**text)).eval(),
        )


def original(kind: str, unet, vae, text) -> dict[str, torch.Tensor]:
    """All their tensors as a checkpoint has them."""
    tensors = {unet_name(name): tensor for name, tensor in unet.state_dict().items()}
    for name, tensor in vae.state_dict().items():
        attention = ".attentions." in name and name.endswith("weight") and "norm" not in name
        tensors[vae_name(name)] = tensor[..., None, None] if attention else tensor  # convolutions of 1x1 there
    text = {name.removeprefix("text_model."): tensor for name, tensor in text.state_dict().items()}
    if kind == "sd1":
        tensors |= {f"cond_stage_model.transformer.text_model.{name}": tensor for name, tensor in text.items()}
    else:
        tensors |= {f"cond_stage_model.model.{name}": tensor for name, tensor in _open_clip(text).items()}
    return {name: tensor.clone().contiguous() for name, tensor in tensors.items()}


def _open_clip(text: dict) -> dict[str, torch.Tensor]:
    """The tensors of a `CLIPTextModel` as OpenCLIP has them, with the last layer, which 2.x does not use."""
    named = {
        "positional_embedding": text["embeddings.position_embedding.weight"],
        "token_embedding.weight": text["embeddings.token_embedding.weight"],
        "text_projection": torch.zeros(TEXT_WIDTH, TEXT_WIDTH),
        "logit_scale": torch.zeros(()),
    }
    for end in ("weight", "bias"):
        named[f"ln_final.{end}"] = text[f"final_layer_norm.{end}"]
        for layer in range(TEXT_LAYERS + 1):
            of, to = f"encoder.layers.{min(layer, TEXT_LAYERS - 1)}", f"transformer.resblocks.{layer}"
            joined = [text[f"{of}.self_attn.{n}_proj.{end}"] for n in "qkv"]
            named[f"{to}.attn.in_proj_{end}"] = torch.cat(joined)
            pairs = {"attn.out_proj": "self_attn.out_proj", "ln_1": "layer_norm1", "ln_2": "layer_norm2"}
            pairs |= {"mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}
            for theirs, ours in pairs.items():
                named[f"{to}.{theirs}.{end}"] = text[f"{of}.{ours}.{end}"]
    return named


def make_checkpoint(file: Path, tokenizer, kind: str = "sd1", channels: int = 4, **more: torch.Tensor) -> Path:
    """Writes a checkpoint, with `more` tensors in it."""
    from safetensors.torch import save_file

    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(original(kind, *make_parts(kind, tokenizer, channels)) | more, file, metadata={"format": "pt"})
    return file


# ---- AnimateDiff's motion modules -----------------------------------------------------------------------------------

VERSIONS = {"v1": (24, False), "v2": (32, True), "v3": (32, False)}  # frames, and whether there is one in the middle


def adapter_of(version):
    """A motion module of random weights, narrow."""
    from diffusers import MotionAdapter

    longest, middle = VERSIONS[version]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        adapter = MotionAdapter(WIDTHS, motion_max_seq_length=longest, use_motion_mid_block=middle)
        spread(adapter)
    return adapter


def released(adapter) -> dict[str, torch.Tensor]:
    """Its tensors as AnimateDiff's files have them."""
    tensors = {}
    for name, tensor in adapter.state_dict().items():
        if name.endswith("pos_embed.pe"):
            for i in (0, 1):
                tensors[name.replace("pos_embed.pe", f"attention_blocks.{i}.pos_encoder.pe")] = tensor.clone()
            continue
        name = name.replace("norm3", "ff_norm").replace(".norm1", ".norms.0").replace(".norm2", ".norms.1")
        tensors[re.sub(r"attn(\d)", lambda m: f"attention_blocks.{int(m[1]) - 1}", name)] = tensor
    place = re.compile(r"(motion_modules\.\d+)")
    return {place.sub(r"\1.temporal_transformer", name): tensor for name, tensor in tensors.items()}
