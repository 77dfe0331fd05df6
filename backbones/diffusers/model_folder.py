"""What a model folder holds, looked at before anything is built of it: no file of it is believed or run.

A folder is data: its configs name classes, sizes and other models, its weights may be pickles. So configs are plain
objects that name nothing to be fetched, of weights exactly the files that will be loaded are chosen and looked into,
and what a config describes is as large as they are.

It is long because every way in which a folder may lie is refused in its own words.
"""

from __future__ import annotations

import json
import os
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

STEMS = {"diffusers": ("diffusion_pytorch_model",) * 2, "transformers": ("model", "pytorch_model")}  # safetensors, .bin
PREFERRED = ("fp16", "bf16", "non_ema")  # variants, where a folder has no plain weights
READ_WHOLE = (".json", ".txt", ".model", ".jinja", ".jsonl")
TABLES, TEXTS = ("vocab.json", "tokenizer.json", "special_tokens_map.json", "added_tokens.json"), ("merges.txt",)
LFS = b"version https://git-lfs"  # how a pointer begins that Git LFS leaves in a file's place
SAFE_TORCH = (2, 6)  # before it, pickles could run code through `weights_only=True` as well (CVE-2025-32434)
COUNTS = re.compile(r"layers|blocks|depth|stages")  # keys of a config that say how often something is built
SHARD = re.compile(r"-\d+-of-\d+\.")  # one of several files, which an index puts together
ATTENTIONS = (None, "eager", "sdpa")  # others may name code on a hub
ROOM = 2  # times the values of the weights that a config may describe; what lacks is refused later, by name
LARGEST_TEXT = 2**28  # bytes of a file that is no weights: the largest tokenizers take a tenth of it
DEEPEST = 50  # levels of a config; libraries walk them by calling themselves


@dataclass(frozen=True)
class Weights:
    """The files that are loaded from a folder, and no others."""

    files: tuple[Path, ...]
    variant: str | None
    safe: bool  # safetensors


def name_of(folder: Path) -> str:
    return f"{folder.parent.name}/{folder.name}"


# ---- configs --------------------------------------------------------------------------------------------------------


def read_json(path: Path, why: str) -> dict:
    """The object in a file; `why` it is needed is told if it is missing.

    Raises:
        ValueError: no such file, a pointer of Git LFS, or no JSON object.
    """
    if not os.path.lexists(path):
        raise ValueError(f"no {path.name} in '{path.parent}': {why}")
    _require_plain_file(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(f"cannot read '{path}': {error}") from error
    _require_no_pointer(path, content)
    try:
        found = json.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"cannot read '{path}': {error}: is the download complete?") from error
    if not isinstance(found, dict):
        raise ValueError(f"'{path}' is not the config of a model: want a JSON object, got a {type(found).__name__}")
    level = [found]
    for _ in range(DEEPEST):
        level = [inner for value in level for inner in _within(value)]
    if level:
        raise ValueError(f"'{path}' is not the config of a model: it has more than {DEEPEST} levels")
    return found


def _within(value) -> Iterable:
    """What an object or a list holds."""
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def _require_plain_file(path: Path) -> None:
    """ValueError for what would be read for ever, such as a pipe, a device or a link to one."""
    if not path.is_file():
        raise ValueError(f"'{name_of(path.parent)}/{path.name}' is no file but a folder, a pipe or a link to nothing")
    if (size := path.stat().st_size) > LARGEST_TEXT:
        raise ValueError(f"'{name_of(path.parent)}/{path.name}' takes {size} bytes: that is not what its name says")


def read_config(folder: Path, why: str = "it says how the model is built") -> dict:
    """The `config.json` of a folder.

    Raises:
        ValueError: it cannot be read, or names code, an adapter or another model to be fetched.
    """
    if (folder / "adapter_config.json").is_file():
        raise ValueError(f"'{name_of(folder)}' holds an adapter (adapter_config.json): want a whole model's weights")
    return _plain(folder / "config.json", why)


def require_readable(folder: Path) -> None:
    """Looks into the small files of a folder, as far as they are there.

    Raises:
        ValueError: one of them is cut off or a pointer, or names code or another model to be fetched.
    """
    for file in sorted(folder.glob("*")):
        if file.suffix in READ_WHOLE:
            _require_plain_file(file)
        if file.name.endswith("_config.json") and not file.name.startswith("."):
            _plain(file, "")
        elif file.name in TABLES:
            read_json(file, "")
        elif file.name in TEXTS:
            with file.open("rb") as opened:
                _require_no_pointer(file, opened.read(len(LFS)))


def _plain(file: Path, why: str) -> dict:
    config = read_json(file, why)
    for key, value in _entries(config):
        if _names_something(key, value):
            raise ValueError(
                f"'{name_of(file.parent)}/{file.name}' asks for something that is not in this folder, and was not "
                f"loaded: its '{key}' is {str(value)[:80]!r}"
            )
    return config


def _entries(value) -> Iterator[tuple[str, object]]:
    """Every key of an object and of all within it, with its value."""
    if isinstance(value, dict):
        yield from value.items()
    for inner in _within(value):
        yield from _entries(inner)


def _names_something(key: str, value) -> bool:
    """Whether a library would look elsewhere: for code, for another model, or for a package that unpickles."""
    if key in ("auto_map", "custom_pipelines", "quantization_config", "base_model_name_or_path"):
        return bool(value)
    if key in ("use_timm_backbone", "use_pretrained_backbone", "trust_remote_code"):
        return bool(value)
    if key == "backbone":
        return value is not None
    if "attn_implementation" in key:
        return value not in ATTENTIONS
    return key.endswith("_config") and not isinstance(value, dict | None)


# ---- weights --------------------------------------------------------------------------------------------------------


def find_weights(folder: Path, library: str) -> Weights:
    """The weights that are loaded: safetensors before .bin, plain ones before variants.

    Raises:
        ValueError: there are none, or an index names files that are not there.
    """
    for safe, stem in zip((True, False), STEMS[library]):
        end = "safetensors" if safe else "bin"
        for variant in (None, *_variants(folder, stem, end)):
            middle = f".{variant}" if variant else ""
            index = folder / f"{stem}.{end}.index{middle}.json"
            if (whole := folder / f"{stem}{middle}.{end}").is_file():
                return Weights((whole,), variant, safe)
            if index.is_file():
                return Weights(_shards(index, end), variant, safe)
    stems = dict.fromkeys(STEMS[library])
    there = sorted(
        p.name for p in folder.iterdir() if p.suffix in (".safetensors", ".bin", ".ckpt", ".pth", ".msgpack")
    )
    raise ValueError(
        f"no weights in '{name_of(folder)}': want {STEMS[library][0]}.safetensors there (or {' or '.join(stems)}.bin), "
        f"found {', '.join(n for n in there if not n.startswith('.')) or 'none'}: is the download complete?"
    )


def _variants(folder: Path, stem: str, end: str) -> list[str]:
    """Of weights with this stem, best first."""
    whole = re.compile(rf"{stem}\.(?P<variant>[\w.-]+)\.{end}")
    index = re.compile(rf"{stem}\.{end}\.index\.(?P<variant>[\w.-]+)\.json")
    names = [p.name for p in folder.iterdir()]
    found = {m["variant"] for n in names if (m := whole.fullmatch(n) or index.fullmatch(n)) and not SHARD.search(n)}
    return sorted(found, key=lambda v: (PREFERRED.index(v) if v in PREFERRED else len(PREFERRED), v))


def _shards(index: Path, end: str) -> tuple[Path, ...]:
    table = read_json(index, "it says which file holds which weights").get("weight_map")
    names = sorted(set(table.values())) if isinstance(table, dict) and table else [None]
    if not all(isinstance(n, str) and Path(n).name == n and n.endswith(f".{end}") for n in names):
        raise ValueError(f"'{name_of(index.parent)}/{index.name}' does not say which .{end} files beside it hold what")
    if missing := [n for n in names if not (index.parent / n).is_file()]:
        raise ValueError(
            f"no {missing[0]} in '{name_of(index.parent)}', one of its {len(names)} files of weights: {_AGAIN}"
        )
    return tuple(index.parent / n for n in names)


def sizes_in(weights: Weights) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all tensors, of the files' headers where they are safetensors.

    Raises:
        ValueError: a file is a pointer, cut off, or a pickle that holds more than tensors.
    """
    sizes: dict[str, tuple[int, ...]] = {}
    for file in weights.files:
        with file.open("rb") as opened:
            _require_no_pointer(file, opened.read(len(LFS)))
        sizes |= _safe_sizes(file) if weights.safe else _pickled_sizes(file)
    return sizes


def _safe_sizes(file: Path) -> dict[str, tuple[int, ...]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as opened:
            return {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"'{name_of(file.parent)}/{file.name}' is not a whole safetensors file ({error}): {_AGAIN}"
        ) from error


def _pickled_sizes(file: Path) -> dict[str, tuple[int, ...]]:
    where = f"'{name_of(file.parent)}/{file.name}'"
    if tuple(int(n) for n in torch.__version__.split(".")[:2]) < SAFE_TORCH:
        raise ValueError(
            f"{where} is a pickle, which is safe to read from torch {'.'.join(map(str, SAFE_TORCH))} on; this is "
            f"{torch.__version__}: use a safetensors version of this model"
        )
    try:
        # Files from before torch 1.6 are no archives and cannot be mapped.
        found = torch.load(file, map_location="meta", weights_only=True, mmap=zipfile.is_zipfile(file))
        sizes = {name: tuple(tensor.shape) for name, tensor in found.items()}
    except Exception as error:
        raise ValueError(
            f"{where} is truncated, or a pickle that holds more than tensors, and was not loaded: use a safetensors "
            "version of this model"
        ) from error
    require_held(file, found.values())
    return sizes


def require_held(file: Path, tensors: Iterable[Tensor]) -> None:
    """ValueError for tensors of a pickle that say they are larger than what the file holds for them: one number may
    stand for all of a tensor's, or one tensor for many, and they take their full size once they are converted."""
    told = 0
    for tensor in tensors:
        told += tensor.numel() * tensor.itemsize
        if tensor.layout != torch.strided or tensor.is_quantized or told > ROOM * file.stat().st_size:
            raise ValueError(
                f"'{name_of(file.parent)}/{file.name}' is not loaded: its tensors are larger than the file, or of no "
                "plain kind; use a safetensors version of it"
            )


_AGAIN = "download it again"


def _require_no_pointer(file: Path, content: bytes) -> None:
    if content.startswith(LFS):
        raise ValueError(
            f"'{name_of(file.parent)}/{file.name}' is a pointer of Git LFS and not the file itself: run `git lfs pull` "
            "where it was cloned, or download the file"
        )


# ---- both -----------------------------------------------------------------------------------------------------------


def require_size(
    folder: Path, config: dict, sizes: Mapping[str, tuple[int, ...]], build: Callable[[], nn.Module]
) -> None:
    """Refuses a config of another size than the weights, before anything of that size is made.

    Args:
        build: makes the module; it is called where tensors take no memory.

    Raises:
        ValueError: more layers than tensors, or more than ROOM times the values.
    """
    longest = max((len(value) for _, value in _entries(config) if isinstance(value, list)), default=1)
    for key, value in _entries(config):
        if COUNTS.search(key) and max(_numbers(value), default=0) * max(1, longest) > len(sizes):
            told = f"its '{key}' is {str(value)[:80]}, and the weights are {len(sizes)} tensors"
            raise ValueError(f"{_other_size(folder)}: {told}")
    with torch.device("meta"):
        module = build()
    described = sum(t.numel() for t in (*module.parameters(), *module.buffers()))
    held = sum(torch.Size(shape).numel() for shape in sizes.values())
    if described > ROOM * held:
        raise ValueError(f"{_other_size(folder)}: it describes {described} values, and the weights hold {held}")


def _numbers(value) -> list[int]:
    if isinstance(value, list):
        return [n for inner in value for n in _numbers(inner)]
    return [value] if isinstance(value, int) else []


def _other_size(folder: Path) -> str:
    return f"'{name_of(folder)}/config.json' is of another model than the weights beside it"
