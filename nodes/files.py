"""Model files, as caches see them."""

from __future__ import annotations

from pathlib import Path


def state_of(path: Path | None) -> list[str] | None:
    """Name, size and time of a file, or of every file in a folder; None if there is nothing there.

    For `fingerprint_inputs`: it changes when any file is replaced, weights as well as configs, and reads none of them.
    """
    if path is None or not path.exists():
        return None
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    return [f"{p.name} {(at := p.stat()).st_size} {at.st_mtime_ns}" for p in files]
