"""What a menu of files offers, and what was chosen of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ..backbones.files import stamp


def chosen(menu: Mapping[str, Path], name: str, what: str = "model") -> Path:
    """ValueError for what is not in the menu, which ComfyUI does not check."""
    if name not in menu:
        raise ValueError(f"no {what} '{name}': found {', '.join(menu) or 'none'} (press R to look again)")
    return menu[name]


def stamp_of(menu: Mapping[str, Path], name: str) -> str | None:
    """Changes with the files of what was chosen; None where there is none, or where it is no name at all."""
    return stamp(menu.get(name)) if isinstance(name, str) else None
