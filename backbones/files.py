"""Model files on disk: what lies below a folder, and whether it has changed."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

log = logging.getLogger(__name__)


def walk(folder: Path) -> Iterator[Path]:
    """Every file below a folder, in order of names. Links are followed as ComfyUI does, but not round in circles.

    Never raises: a folder that cannot be read counts as empty. Left out are hidden files, such as the `._*` that macOS
    puts beside others, names that are no text, and what is no file but a pipe, which would be waited for.
    """
    waiting = [(Path(folder), frozenset[tuple[int, int]]())] if os.path.isdir(folder) else []  # with those above each
    while waiting:
        path, above = waiting.pop()
        if not os.path.isdir(path):
            yield path
            continue
        try:
            told = os.stat(path)
            here = told.st_dev, told.st_ino
            names = sorted(os.listdir(path)) if here not in above else []
        except OSError:
            continue
        below = [path / name for name in names if not name.startswith(".") and _is_text(name)]
        waiting += [(p, above | {here}) for p in reversed(below) if not _is_special(p)]


def found(roots: Iterable[Path], choose: Callable[[Path], Path | None]) -> dict[str, Path]:
    """What a menu shows of the files below some folders: {path below its folder: path}.

    Never raises, as ComfyUI would then show no node of the pack: what cannot be looked at is named in the log.

    Args:
        choose: a file -> what the menu offers for it, that file or a folder around it, or None.
    """
    menu: dict[str, Path] = {}
    for root in roots:
        for path in walk(root):
            try:
                chosen = choose(path)
            except Exception as error:  # whatever it is
                log.warning("'%s' is in no menu, as it cannot be looked at: %s", path, error)
                continue
            if chosen is not None:
                menu.setdefault(str(chosen.relative_to(root)), chosen)
    return menu


def _is_text(name: str) -> bool:
    """False for bytes that are no UTF-8, which Python hands on as halves of surrogate pairs."""
    return not any("\ud800" <= c <= "\udfff" for c in name)


def _is_special(path: Path) -> bool:
    return os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path)


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
