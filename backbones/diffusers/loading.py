"""From a diffusers folder on disk to a `Backbone`. Only safetensors, or `.bin` files that hold nothing but tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import torch

from ...engine.ports import Backbone
from ..memory import Memory, PlainMemory
from .codec import FrameCodec
from .model_folder import (
    Weights,
    find_weights,
    name_of,
    read_config,
    read_json,
    require_readable,
    require_size,
    sizes_in,
)
from .parts import make_schedule
from .text import ClipText
from .unet import DiffusersUNet
from .unet2d import UNet2D
from .unet3d import UNet3D

DType = Literal["auto", "float32", "float16", "bfloat16"]
DTYPES = ("auto", "float32", "float16", "bfloat16")
# A new family of diffusers' networks: its file, and its line here.
FAMILIES: dict[str, type[DiffusersUNet]] = {"UNet2DConditionModel": UNet2D, "UNet3DConditionModel": UNet3D}
# A folder names classes, and these alone are ever made of it.
PARTS = {
    "unet": ("diffusers", tuple(FAMILIES)),
    "vae": ("diffusers", ("AutoencoderKL",)),
    "text_encoder": ("transformers", ("CLIPTextModel",)),
    "tokenizer": ("transformers", ("CLIPTokenizer", "CLIPTokenizerFast")),
}
# Networks that are told more than the noise level and a text, by what their config says.
TOLD_MORE = {
    "addition_embed_type": "it is an SDXL-like model",
    "time_cond_proj_dim": "it is distilled (LCM) and told the guidance scale by an embedding of its own",
    "class_embed_type": "it is told a class, as upscalers and unCLIP models are",
    "num_class_embeds": "it is told a class, as upscalers are",
}
LONGEST = 500  # characters of a library's own message


@torch.inference_mode(False)
def load_backbone(
    folder: Path | str,
    *,
    name: str | None = None,
    dtype: DType = "auto",
    memory: Memory | None = None,
    check: Callable[[], None] = lambda: None,
) -> Backbone:
    """Loads a diffusers folder (the one with `model_index.json`).

    Args:
        dtype: of the network and the text encoder; "auto" asks `memory`. In half precision the VAE takes the half
            that it bears: see `_vae_dtype`.
        memory: who moves weights; plain torch by default.
        check: cancel point between batches of frames.

    Raises:
        ValueError: no such folder, a class of model that is not supported, parts that do not fit, or a file that is
            missing, truncated, a pickle that holds more than tensors, or names something outside the folder.
    """
    folder = Path(folder)
    if dtype not in DTYPES:
        raise ValueError(f"no dtype '{dtype}': want one of {', '.join(DTYPES)}")
    classes = _read_index(folder)
    family = classes.get("unet", classes.get("transformer", (None, None)))[1]
    if family not in FAMILIES:
        raise ValueError(
            f"'{folder.name}' holds a {family}, which is not supported yet: want one of {', '.join(FAMILIES)}"
        )
    if missing := [part for part in PARTS if part not in classes or not (folder / part).is_dir()]:
        raise ValueError(f"'{folder.name}' has no {' and no '.join(missing)}: is the download complete?")
    for part, (library, allowed) in PARTS.items():
        if (named := classes[part])[0] != library or named[1] not in allowed:
            raise ValueError(
                f"'{folder.name}' names {'.'.join(map(str, named))} as its {part}, which is not supported: want "
                f"{' or '.join(f'{library}.{kind}' for kind in allowed)}"
            )
    for part in ("unet", "vae", "text_encoder"):
        require_readable_weights(folder / part, PARTS[part][0])
    memory = memory or PlainMemory()
    kind = memory.default_dtype() if dtype == "auto" else getattr(torch, dtype)
    return _load_unet(FAMILIES[family], folder, name or folder.name, classes, kind, memory, check)


def _load_unet(
    family: type[DiffusersUNet], folder: Path, name: str, classes: dict, dtype: torch.dtype, memory: Memory, check
) -> Backbone:
    import diffusers
    import transformers

    # diffusers takes less memory with accelerate; without it, it must be told not to ask for it.
    frugal = {"low_cpu_mem_usage": diffusers.utils.is_accelerate_available()}
    network = frozen_module(diffusers, classes["unet"][1], folder / "unet", torch_dtype=dtype, **frugal)
    vae = frozen_module(diffusers, classes["vae"][1], folder / "vae", torch_dtype=torch.float32, **frugal)
    _require_known(network, vae, folder.name)
    encoder = frozen_module(transformers, classes["text_encoder"][1], folder / "text_encoder")
    tokenizer = loaded(folder / "tokenizer", transformers, classes["tokenizer"][1])
    _fit_text(network, encoder, tokenizer, folder.name)
    scheduler = read_json(folder / "scheduler" / "scheduler_config.json", "it states the noise levels")
    make_schedule(scheduler, 1)  # refused now rather than at the first edit
    codec = FrameCodec(name, vae, memory, check, family.fewest_frames)
    # Only now: the fingerprint is of its weights as they are in the file.
    torch.nn.Module.to(vae, _vae_dtype(vae, dtype, memory))
    denoiser = family(name, network, codec.layout, scheduler, memory, vae.config.scaling_factor)
    return Backbone(name, denoiser, codec, ClipText(encoder.to(dtype=dtype), tokenizer, memory))


def _vae_dtype(vae, dtype: torch.dtype, memory: Memory) -> torch.dtype:
    """bfloat16 has the range of float32, so every VAE bears it; in float16 frames turn black but for the VAEs whose
    config says that they need not be upcast. The CPU has nothing to gain."""
    if dtype == torch.float32 or memory.device.type == "cpu":
        return torch.float32
    if memory.has_bfloat16():
        return torch.bfloat16
    return torch.float16 if getattr(vae.config, "force_upcast", True) is False else torch.float32


def _require_known(network, vae, name: str) -> None:
    """Refuses relatives of Stable Diffusion whose networks want inputs that are not given."""
    for key, what in TOLD_MORE.items():
        if getattr(network.config, key, None) is not None:
            raise ValueError(f"the network of '{name}' is not supported, as {what}: use Stable Diffusion 1.x or 2.x")
    if "image" in (getattr(network.config, "encoder_hid_dim_type", None) or ""):
        raise ValueError(f"the network of '{name}' is not supported, as it is told a picture in place of a text")
    takes, gives, latent = network.config.in_channels, network.config.out_channels, vae.config.latent_channels
    if takes not in (latent, 2 * latent):
        raise ValueError(
            f"the network of '{name}' takes {takes} channels and the latents have {latent}: inpainting and depth "
            "models are not supported, use a text-to-image, a text-to-video or an InstructPix2Pix model"
        )
    if gives != latent or (vae.config.in_channels, vae.config.out_channels) != (3, 3):
        raise ValueError(
            f"the parts of '{name}' do not fit: the network gives {gives} channels, the latents have {latent}, and the "
            f"VAE turns {vae.config.in_channels} colors into {vae.config.out_channels}"
        )


def _fit_text(network, encoder, tokenizer, name: str) -> None:
    """Lets the tokenizer give no more tokens than the encoder reads; refuses texts that the network cannot take."""
    reads, gives, wants = encoder.config.vocab_size, encoder.config.hidden_size, network.config.cross_attention_dim
    if len(tokenizer) > reads:
        raise ValueError(
            f"the tokenizer of '{name}' knows {len(tokenizer)} tokens and its text encoder {reads}: is one of them of "
            "another model?"
        )
    if wants != gives:
        raise ValueError(f"the network of '{name}' takes texts {wants} wide and its text encoder gives {gives}")
    tokenizer.model_max_length = min(tokenizer.model_max_length, encoder.config.max_position_embeddings)


def frozen_module(library, kind: str, folder: Path, **options):
    """A network with frozen weights, every one of them from its files, which are looked into before it is made."""
    config, weights = read_config(folder), find_weights(folder, library.__name__)
    _require_size(getattr(library, kind), folder, config, weights)
    chosen = {"variant": weights.variant, "use_safetensors": weights.safe, "output_loading_info": True, **options}
    module, report = loaded(folder, library, kind, **chosen)
    if missing := sorted(report["missing_keys"]):
        raise ValueError(
            f"the weights in '{name_of(folder)}' lack {len(missing)} of the tensors of a {kind}, {missing[0]} among "
            "them: is it the file of another model?"
        )
    return module.eval().requires_grad_(False)


def _require_size(kind: type, folder: Path, config: dict, weights: Weights) -> None:
    def build():
        with _in_plain_words(folder):
            if hasattr(kind, "from_config"):  # diffusers
                return kind.from_config(config)
            return kind(kind.config_class.from_pretrained(folder, local_files_only=True))

    require_size(folder, config, sizes_in(weights), build)


def loaded(folder: Path, library, kind: str, **options):
    """What a library's class makes of a folder, without looking elsewhere; what goes wrong is said in plain words."""
    require_readable(folder)
    with _in_plain_words(folder):
        return getattr(library, kind).from_pretrained(folder, local_files_only=True, **options)


@contextmanager
def _in_plain_words(folder: Path) -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError:
        raise  # ComfyUI frees memory and advises on this type alone
    except Exception as error:  # libraries raise whatever there is, and tokenizers bare exceptions
        told = str(error)
        told = told if len(told) <= LONGEST else f"{told[:LONGEST]} ..."
        raise ValueError(f"cannot load '{name_of(folder)}': {told}") from error


def require_readable_weights(folder: Path, library: str = "transformers") -> None:
    """Looks into every weights file before any is loaded, so that a bad one is named in plain words."""
    sizes_in(find_weights(folder, library))


def _read_index(folder: Path) -> dict[str, tuple[str, str]]:
    """The library and the class of each part that `model_index.json` names."""
    entries = read_json(folder / "model_index.json", "a diffusers model folder has one")
    return {part: tuple(entry) for part, entry in entries.items() if isinstance(entry, list) and len(entry) == 2}
