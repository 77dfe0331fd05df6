"""From a diffusers folder or a checkpoint on disk to a `Backbone`.

Only safetensors are read, or `.bin` files that hold nothing but tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from ...engine.ports import Backbone
from ..memory import Memory, PlainMemory
from .assembly import DTYPES as DTYPES  # for those who offer a choice
from .assembly import DType, Parts, assemble, dtype_of
from .cogvideox import CogVideoX, assemble_cogvideox, require_diffusers, text_dtype
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
from .sentence_pieces import FILE, SentencePieces
from .single_file import read_checkpoint
from .unet import DiffusersUNet
from .unet2d import UNet2D
from .unet3d import UNet3D
from .unet_motion import UNetMotion


@dataclass(frozen=True)
class Family:
    """Networks of one class of diffusers: what they are as a `Denoiser`, and what goes with them.

    A folder names classes, and those listed here alone are ever made of it.
    """

    denoiser: type[DiffusersUNet]
    network: str = "unet"  # what the folder calls it
    vae: str = "AutoencoderKL"
    encoder: str = "CLIPTextModel"
    tokenizers: tuple[str, ...] = ("CLIPTokenizer", "CLIPTokenizerFast")
    assemble: Callable[..., Backbone] = assemble

    def parts(self, kind: str) -> dict[str, tuple[str, tuple[str, ...]]]:
        """{folder of a part: (library, classes it may be)}."""
        return {
            self.network: ("diffusers", (kind,)),
            "vae": ("diffusers", (self.vae,)),
            "text_encoder": ("transformers", (self.encoder,)),
            "tokenizer": ("transformers", self.tokenizers),
        }


# A new family of diffusers' networks: its file, and its line here.
FAMILIES = {
    "UNet2DConditionModel": Family(UNet2D),
    "UNet3DConditionModel": Family(UNet3D),
    "UNetMotionModel": Family(UNetMotion),
    "CogVideoXTransformer3DModel": Family(
        CogVideoX, "transformer", "AutoencoderKLCogVideoX", "T5EncoderModel", ("T5Tokenizer", "T5TokenizerFast"),
        assemble_cogvideox,
    ),
}  # fmt: skip
CLIP = "CLIPTokenizer"
LONGEST = 500  # characters of a library's own message


@torch.inference_mode(False)
def load_backbone(
    path: Path | str,
    *,
    name: str | None = None,
    dtype: DType = "auto",
    memory: Memory | None = None,
    check: Callable[[], None] = lambda: None,
    tokenizer: Path | None = None,
) -> Backbone:
    """Loads a diffusers folder (the one with `model_index.json`), or a single-file checkpoint.

    Args:
        dtype: of the network and the text encoder; "auto" asks `memory`. In half precision the VAE takes the half
            that it bears: see `vae_dtype`.
        memory: who moves weights; plain torch by default.
        check: cancel point between batches of frames.
        tokenizer: the folder of CLIP's tokenizer, which single-file checkpoints lack.

    Raises:
        ValueError: no such folder, a class of model that is not supported, parts that do not fit, or a file that is
            missing, truncated, a pickle that holds more than tensors, or names something outside the folder.
    """
    path, memory = Path(path), memory or PlainMemory()
    kind = dtype_of(dtype, memory)
    family, parts = read_parts(path, kind, tokenizer)
    return family.assemble(family.denoiser, name or path.name, parts, kind, memory, check)


def read_parts(path: Path, dtype: torch.dtype, tokenizer: Path | None = None) -> tuple[Family, Parts]:
    """What a folder or a single file holds, and the family it belongs to. See `load_backbone`."""
    if path.is_file():
        if tokenizer is None:
            raise ValueError(f"'{path.name}' has no tokenizer, as no single file has: give the folder of CLIP's")
        return FAMILIES["UNet2DConditionModel"], read_checkpoint(path, partial(_tokenizer, tokenizer, CLIP), dtype)
    family, classes = _checked_index(path)
    return family, _folder_parts(path, family, classes, dtype)


def _checked_index(folder: Path) -> tuple[Family, dict[str, tuple[str, str]]]:
    """The family of a folder and the classes of its parts, after all that can be told without loading."""
    classes = _read_index(folder)
    kind = classes.get("unet", classes.get("transformer", (None, None)))[1]
    if kind not in FAMILIES:
        raise ValueError(
            f"'{folder.name}' holds a {kind}, which is not supported yet: want one of {', '.join(FAMILIES)}"
        )
    family = FAMILIES[kind]
    wanted = family.parts(kind)
    if missing := [part for part in wanted if part not in classes or not (folder / part).is_dir()]:
        raise ValueError(f"'{folder.name}' has no {' and no '.join(missing)}: is the download complete?")
    for part, (library, allowed) in wanted.items():
        if (named := classes[part])[0] != library or named[1] not in allowed:
            raise ValueError(
                f"'{folder.name}' names {'.'.join(map(str, named))} as its {part}, which is not supported: want "
                f"{' or '.join(f'{library}.{one}' for one in allowed)}"
            )
    for part in (family.network, "vae", "text_encoder"):
        require_readable_weights(folder / part, wanted[part][0])
    return family, classes


def _folder_parts(folder: Path, family: Family, classes: dict, dtype: torch.dtype) -> Parts:
    """The parts of a folder whose index names `classes` for them."""
    import diffusers
    import transformers

    diffusers_like = partial(frozen_module, diffusers, low_cpu_mem_usage=diffusers.utils.is_accelerate_available())
    own = {}  # of a text encoder: the dtype of its file
    if family.denoiser is CogVideoX:
        require_diffusers()
        own = {"torch_dtype": text_dtype(dtype)}
    network = diffusers_like(classes[family.network][1], folder / family.network, torch_dtype=dtype)
    vae = diffusers_like(classes["vae"][1], folder / "vae", torch_dtype=torch.float32)
    encoder = frozen_module(transformers, classes["text_encoder"][1], folder / "text_encoder", **own)
    tokenizer = _tokenizer(folder / "tokenizer", classes["tokenizer"][1])
    scheduler = read_json(folder / "scheduler" / "scheduler_config.json", "it states the noise levels")
    return Parts(network, vae, encoder, tokenizer, scheduler)


def _tokenizer(folder: Path, kind: str):
    import transformers

    if (folder / FILE).is_file():
        return SentencePieces(folder)
    return loaded(folder, transformers, kind)


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
