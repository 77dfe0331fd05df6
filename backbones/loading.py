"""From a diffusers folder on disk to a `Backbone`. Only safetensors, or `.bin` files that hold nothing but tensors."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch

from ..engine.ports import Backbone
from .codec import FrameCodec
from .diffusers_unet import DiffusersUNet
from .memory import Memory, PlainMemory
from .text import ClipText
from .unet2d import UNet2D
from .unet3d import UNet3D

DType = Literal["auto", "float32", "float16", "bfloat16"]
DTYPES = ("auto", "float32", "float16", "bfloat16")
PARTS = ("unet", "vae", "text_encoder", "tokenizer")


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
        ValueError: no such folder, a model class that is not supported, or a weights file that is missing, truncated
            or holds more than tensors.
    """
    folder = Path(folder)
    if dtype not in DTYPES:
        raise ValueError(f"no dtype '{dtype}': want one of {', '.join(DTYPES)}")
    classes = _read_index(folder)
    family = classes.get("unet", classes.get("transformer"))
    if family not in _FAMILIES:
        raise ValueError(
            f"'{folder.name}' holds a {family}, which is not supported yet: want one of {', '.join(_FAMILIES)}"
        )
    if missing := [part for part in PARTS if part not in classes or not (folder / part).is_dir()]:
        raise ValueError(f"'{folder.name}' has no {' and no '.join(missing)}: is the download complete?")
    for part in ("unet", "vae", "text_encoder"):
        require_readable_weights(folder / part)
    memory = memory or PlainMemory()
    kind = memory.default_dtype() if dtype == "auto" else getattr(torch, dtype)
    return _load_unet(_FAMILIES[family], folder, name or folder.name, classes, kind, memory, check)


def _load_unet(
    family: type[DiffusersUNet], folder: Path, name: str, classes: dict, dtype: torch.dtype, memory: Memory, check
) -> Backbone:
    import diffusers
    import transformers

    # diffusers takes less memory with accelerate; without it, it must be told not to ask for it.
    frugal = {"low_cpu_mem_usage": diffusers.utils.is_accelerate_available()}
    network = frozen_module(diffusers, classes["unet"], folder / "unet", torch_dtype=dtype, **frugal)
    vae = frozen_module(diffusers, classes["vae"], folder / "vae", torch_dtype=torch.float32, **frugal)
    _require_known(network, vae, folder.name)
    encoder = frozen_module(transformers, classes["text_encoder"], folder / "text_encoder")
    tokenizer = loaded(folder / "tokenizer", transformers, classes["tokenizer"])
    scheduler = read_json(folder / "scheduler" / "scheduler_config.json", "it states the noise levels")
    codec = FrameCodec(name, vae, memory, check, family.fewest_frames)
    # Only now: the fingerprint is of its weights as they are in the file.
    torch.nn.Module.to(vae, _vae_dtype(vae, dtype, memory))
    more = {"scaling_factor": vae.config.scaling_factor} if family is UNet2D else {}
    denoiser = family(name, network, codec.layout, scheduler, memory, **more)
    return Backbone(name, denoiser, codec, ClipText(encoder.to(dtype=dtype), tokenizer, memory))


def _vae_dtype(vae, dtype: torch.dtype, memory: Memory) -> torch.dtype:
    """bfloat16 has the range of float32, so every VAE bears it; in float16 frames turn black but for the VAEs whose
    config says that they need not be upcast. The CPU has nothing to gain."""
    if dtype == torch.float32 or memory.device.type == "cpu":
        return torch.float32
    if memory.has_bfloat16():
        return torch.bfloat16
    return torch.float16 if getattr(vae.config, "force_upcast", True) is False else torch.float32


_FAMILIES = {"UNet2DConditionModel": UNet2D, "UNet3DConditionModel": UNet3D}


def _require_known(network, vae, name: str) -> None:
    """Refuses relatives of Stable Diffusion whose networks want inputs that are not given."""
    takes, latent = network.config.in_channels, vae.config.latent_channels
    if getattr(network.config, "addition_embed_type", None) is not None:
        raise ValueError(f"'{name}' is an SDXL-like model, which is not supported: use Stable Diffusion 1.x or 2.x")
    if takes not in (latent, 2 * latent):
        raise ValueError(
            f"the network of '{name}' takes {takes} channels and the latents have {latent}: inpainting and depth "
            "models are not supported, use a text-to-image, a text-to-video or an InstructPix2Pix model"
        )


def frozen_module(library, kind: str, folder: Path, **options):
    """A network with frozen weights, every one of them from its files."""
    module, report = loaded(folder, library, kind, variant=_variant(folder), output_loading_info=True, **options)
    if missing := sorted(report["missing_keys"]):
        raise ValueError(
            f"the weights in '{_name(folder)}' lack {len(missing)} of the tensors of a {kind}, {missing[0]} among "
            "them: is it the file of another model?"
        )
    return module.eval().requires_grad_(False)


def loaded(folder: Path, library, kind: str, **options):
    """What a library's class makes of a folder; what goes wrong is said in plain words."""
    try:
        return getattr(library, kind).from_pretrained(folder, **options)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise  # ComfyUI frees memory and advises on this type alone
        raise ValueError(f"cannot load '{_name(folder)}': {error}") from error


def _name(folder: Path) -> str:
    return f"{folder.parent.name}/{folder.name}"


def _variant(folder: Path) -> str | None:
    """ "fp16" where a folder ships nothing else."""
    names = [p.name for p in _weight_files(folder)]
    return "fp16" if names and all(".fp16" in n for n in names) else None


def _weight_files(folder: Path) -> list[Path]:
    safe = sorted(folder.glob("*.safetensors"))
    return safe or sorted(folder.glob("*.bin"))


def require_readable_weights(folder: Path) -> None:
    """Looks into every weights file before any is loaded, so that a bad one is named in plain words."""
    from safetensors import SafetensorError, safe_open

    where = _name(folder)
    files = _weight_files(folder)
    if not files:
        raise ValueError(f"no weights in '{where}': want *.safetensors there, is the download complete?")
    for file in files:
        try:
            if file.suffix == ".safetensors":
                with safe_open(file, framework="pt") as opened:
                    opened.keys()
            else:
                torch.load(file, map_location="meta", weights_only=True, mmap=True)
        except (SafetensorError, OSError) as error:
            raise ValueError(
                f"'{where}/{file.name}' is not a whole safetensors file ({error}): download it again"
            ) from error
        except Exception as error:
            raise ValueError(
                f"'{where}/{file.name}' is truncated, or a pickle that holds more than tensors, and was not loaded: "
                "use a safetensors version of this model"
            ) from error


def _read_index(folder: Path) -> dict[str, str]:
    """The class of each part that `model_index.json` names."""
    path = folder / "model_index.json"
    entries = read_json(path, "a diffusers model folder has one")
    if not isinstance(entries, dict):
        raise ValueError(f"'{path}' is not the index of a diffusers model")
    return {part: entry[1] for part, entry in entries.items() if isinstance(entry, list) and len(entry) == 2}


def read_json(path: Path, why: str) -> dict:
    """The content of a file; `why` it is needed is told if it is missing."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise ValueError(f"no {path.name} in '{path.parent}': {why}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"cannot read '{path}': {error}") from error
