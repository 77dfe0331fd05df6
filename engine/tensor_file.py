"""Tensors in safetensors files that are whole or not there: written beside their name, and renamed."""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor


def write_tensors(path: Path, tensors: Mapping[str, Tensor], told: Mapping[str, str]) -> int:
    """Writes a file; what had its name stays until the new one is whole and on the disk.

    Returns:
        Its size in bytes.

    Raises:
        OSError: the disk is full, or nothing may be written there.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    partial = _partial(path)
    try:
        save_file(
            {name: t.detach().cpu().contiguous() for name, t in tensors.items()}, partial, {"format": "pt", **told}
        )
        with partial.open("rb+") as written:
            os.fsync(written.fileno())
        partial.replace(path)
    except SafetensorError as error:  # how its writer says that a disk is full
        raise OSError(f"cannot write '{path}': {error}") from error
    finally:
        partial.unlink(missing_ok=True)
    return path.stat().st_size


def require_writable(path: Path) -> None:
    """ValueError, before hours of work, for a name that no file can have or a folder that takes none."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _partial(path).touch()
        _partial(path).unlink()
    except OSError as error:
        raise ValueError(f"nothing can be saved as '{path.name}' in '{path.parent}': {error.strerror}") from error


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.partial")


def read_tensors(path: Path, what: str = "file") -> tuple[dict[str, Tensor], dict[str, str]]:
    """(tensors, metadata) of a file; `what` it is called in messages.

    Raises:
        ValueError: no such file, or not a whole safetensors file.
    """
    from safetensors import SafetensorError, safe_open

    if path.exists() and not path.is_file():
        raise ValueError(f"'{path.name}' is no file but a folder or a pipe: there is no {what} in it")
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except FileNotFoundError:
        raise ValueError(f"no {what} '{path.name}': it is gone from its folder") from None
    except (OSError, SafetensorError) as error:
        raise ValueError(f"'{path.name}' is not a whole safetensors file ({error}): make it again") from error


def free_name(path: Path) -> Path:
    """A name that overwrites nothing: the path, or where it is taken one with a number, as cat_2.safetensors."""
    numbered = (path.with_name(f"{path.stem}_{n}{path.suffix}") for n in itertools.count(2))
    return next(p for p in itertools.chain([path], numbered) if not p.exists())


def in_units(size: int) -> str:
    """Bytes for people: "12.3 MB"."""
    return f"{size / 2**30:.1f} GB" if size >= 2**30 else f"{size / 2**20:.1f} MB"
