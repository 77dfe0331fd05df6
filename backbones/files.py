"""Model files on disk: what lies below a folder, and whether it has changed."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path


def walk(folder: Path, above: frozenset[str] = frozenset()) -> Iterator[Path]:
    """Every file below a folder, in order of names. Links are followed as ComfyUI does, but not round in circles.

    Never raises: a folder that cannot be read counts as empty. Hidden files are left out, such as the `._*` that macOS
    puts beside others.
    """
    here = os.path.realpath(folder)
    try:
        names = sorted(os.listdir(folder)) if here not in above else []
    except OSError:
        return
    for name in names:
        path = folder / name
        if name.startswith("."):
            continue
        if os.path.isdir(path):
            yield from walk(path, above | {here})
        else:
            yield path


def stamp(path: Path | None) -> str | None:
    """Changes whenever a file, or any file below a folder, is written, added, removed or linked elsewhere.

    By names, sizes and times: contents are not read. None for None.
    """
    if path is None:
        return None
    digest = hashlib.sha256()
    for file in walk(path) if path.is_dir() else [path]:
        try:
            told = file.stat()
            digest.update(f"{file}|{told.st_size}|{told.st_mtime_ns}\n".encode(errors="surrogatepass"))
        except OSError:  # gone since, or a link to nothing
            digest.update(f"{file}\n".encode(errors="surrogatepass"))
    return digest.hexdigest()
