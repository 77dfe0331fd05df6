"""From a diffusers folder or a checkpoint on disk to a `Backbone`.

Only safetensors are read, or `.bin` files that hold nothing but tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import nn

from ...engine.ports import Backbone
from ..lavie.denoiser import SCHEDULER, read_network, released_file
from ..memory import Memory, PlainMemory
from ..plain_words import in_plain_words
from .assembly import DTYPES as DTYPES  # for those who offer a choice
from .assembly import DType, Parts, dtype_of
from .cogvideox import CogVideoX, require_diffusers, text_dtype
from .families import FAMILIES, LAVIE, Family
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

CLIP = "CLIPTokenizer"


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
    """Loads a diffusers folder (the one with `model_index.json`), a single-file checkpoint, or a folder with LaVie's
    file and a Stable Diffusion 1.4.

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
    with in_plain_words(f"'{path.name}'"):
        family, parts = read_parts(path, kind, tokenizer)
        return family.assemble(family.denoiser, name or path.name, parts, kind, memory, check)


def read_parts(path: Path, dtype: torch.dtype, tokenizer: Path | None = None) -> tuple[Family, Parts]:
    """What a folder or a single file holds, and the family it belongs to. See `load_backbone`."""
    if path.is_file():
        if tokenizer is None:
            raise ValueError(f"'{path.name}' has no tokenizer, as no single file has: give the folder of CLIP's")
        return FAMILIES["UNet2DConditionModel"], read_checkpoint(path, partial(_tokenizer, tokenizer, CLIP), dtype)
    if (file := released_file(path)) is not None:
        return LAVIE, _lavie_parts(file, dtype)
    family, classes = _checked_index(path)
    return family, _folder_parts(path, family, classes, dtype)


def _checked_index(folder: Path, needs_network: bool = True) -> tuple[Family, dict[str, tuple[str, str]]]:
    """The family of a folder and the classes of its parts, after all that can be told without loading.

    Args:
        needs_network: else its own network may be missing, as another takes its place.
    """
    classes = _read_index(folder)
    kind = classes.get("unet", classes.get("transformer", (None, None)))[1]
    if kind not in FAMILIES:
        raise ValueError(
            f"'{folder.name}' holds a {kind}, which is not supported yet: want one of {', '.join(FAMILIES)}"
        )
    family = FAMILIES[kind]
    wanted = family.parts(kind)
    if not needs_network:
        del wanted[family.network]
    if missing := [part for part in wanted if part not in classes or not (folder / part).is_dir()]:
        raise ValueError(f"'{folder.name}' has no {' and no '.join(missing)}: is the download complete?")
    for part, (library, allowed) in wanted.items():
        if (named := classes[part])[0] != library or named[1] not in allowed:
            raise ValueError(
                f"'{folder.name}' names {'.'.join(map(str, named))} as its {part}, which is not supported: want "
                f"{' or '.join(f'{library}.{one}' for one in allowed)}"
            )
    for part in (part for part in wanted if part != "tokenizer"):
        require_readable_weights(folder / part, wanted[part][0])
    return family, classes


def _folder_parts(folder: Path, family: Family, classes: dict, dtype: torch.dtype) -> Parts:
    """The parts of a folder whose index names `classes` for them."""
    import diffusers

    if family.denoiser is CogVideoX:
        require_diffusers()
    network = frozen_module(
        diffusers, classes[family.network][1], folder / family.network, torch_dtype=dtype, **_frugal()
    )
    return _with_companions(network, folder, family, classes, dtype)


def _with_companions(network: nn.Module, folder: Path, family: Family, classes: dict, dtype: torch.dtype) -> Parts:
    """A network with a folder's other parts."""
    import diffusers
    import transformers

    own = {"torch_dtype": text_dtype(dtype)} if family.denoiser is CogVideoX else {}  # else that of its file
    vae = frozen_module(diffusers, classes["vae"][1], folder / "vae", torch_dtype=torch.float32, **_frugal())
    encoder = frozen_module(transformers, classes["text_encoder"][1], folder / "text_encoder", **own)
    tokenizer = _tokenizer(folder / "tokenizer", classes["tokenizer"][1])
    scheduler = read_json(folder / "scheduler" / "scheduler_config.json", "it states the noise levels")
    return Parts(network, vae, encoder, tokenizer, scheduler)


def _frugal() -> dict[str, bool]:
    """diffusers takes less memory with accelerate; without it, it must be told not to ask for it."""
    import diffusers

    return {"low_cpu_mem_usage": diffusers.utils.is_accelerate_available()}


def _lavie_parts(file: Path, dtype: torch.dtype) -> Parts:
    """LaVie's network, with the other parts of the Stable Diffusion 1.4 that lies beside it."""
    beside = sorted(index.parent for index in file.parent.glob("*/model_index.json"))
    if not beside:
        raise ValueError(
            f"'{file.parent.name}' has no folder of Stable Diffusion 1.4 beside {file.name}, which gives LaVie its "
            f"VAE, text encoder, tokenizer and scheduler: put stable-diffusion-v1-4 into '{file.parent}'"
        )
    _, classes = _checked_index(beside[0], needs_network=False)
    parts = _with_companions(read_network(file, dtype), beside[0], LAVIE, classes, dtype)
    return replace(parts, scheduler=parts.scheduler | SCHEDULER)


def _tokenizer(folder: Path, kind: str):
    import transformers

    require_readable(folder)
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
        with in_plain_words(f"'{name_of(folder)}'", ours=False):
            if hasattr(kind, "from_config"):  # diffusers
                return kind.from_config(config)
            return kind(kind.config_class.from_pretrained(folder, local_files_only=True))

    require_size(folder, config, sizes_in(weights), build)


def loaded(folder: Path, library, kind: str, **options):
    """What a library's class makes of a folder, without looking elsewhere; what goes wrong is said in plain words."""
    require_readable(folder)
    with in_plain_words(f"'{name_of(folder)}'", ours=False):
        return getattr(library, kind).from_pretrained(folder, local_files_only=True, **options)


def require_readable_weights(folder: Path, library: str = "transformers") -> None:
    """Looks into every weights file before any is loaded, so that a bad one is named in plain words."""
    sizes_in(find_weights(folder, library))


def _read_index(folder: Path) -> dict[str, tuple[str, str]]:
    """The library and the class of each part that `model_index.json` names."""
    entries = read_json(folder / "model_index.json", "a diffusers model folder has one")
    return {part: tuple(entry) for part, entry in entries.items() if isinstance(entry, list) and len(entry) == 2}
