"""What a menu of files offers, what was chosen of it, and where a new file goes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import folder_paths

from ..backbones.files import stamp
from ..engine.tensor_file import require_writable


def roots(key: str) -> list[Path]:
    """ComfyUI's folders of this name, those of `extra_model_paths.yaml` among them, and models/<name>."""
    known = folder_paths.get_folder_paths(key) if key in folder_paths.folder_names_and_paths else []
    return [Path(path) for path in dict.fromkeys((*known, str(Path(folder_paths.models_dir) / key)))]


def chosen(menu: Mapping[str, Path], name: str, what: str = "model") -> Path:
    """ValueError for what is not in the menu, which ComfyUI does not check."""
    if name not in menu:
        raise ValueError(f"no {what} '{name}': found {', '.join(menu) or 'none'} (press R to look again)")
    return menu[name]


def stamp_of(menu: Mapping[str, Path], name: str) -> str | None:
    """Changes with the files of what was chosen; None where there is none, or where it is no name at all."""
    return stamp(menu.get(name)) if isinstance(name, str) else None


def file_for(name: str, *, folder: str) -> Path:
    """The file of this name in a folder of the output. ValueError, before anything is made, for what is no name."""
    if not re.fullmatch(r"\w[\w .-]*", name.strip()):
        raise ValueError(f"want a plain file name of letters, digits, dots and dashes to save as, got '{name}'")
    path = Path(folder_paths.get_output_directory(), folder, f"{name.strip()}.safetensors")
    require_writable(path)
    return path
