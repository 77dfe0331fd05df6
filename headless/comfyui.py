"""Where ComfyUI is: named by the user, in its usual place, or cloned beside the pack."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
USUAL = Path.home() / "comfy" / "ComfyUI"
OURS = ROOT / ".comfy" / "ComfyUI"
REPOSITORY = "https://github.com/comfyanonymous/ComfyUI"
VERSION = "v0.3.64"  # the oldest supported, and the one the pack is tested with
CLONE_TIMEOUT = 300  # seconds


def find_comfyui() -> Path | None:
    """The folder of a ComfyUI checkout: `COMFYUI_PATH`, `~/comfy/ComfyUI`, or the one `clone_comfyui` made.

    Raises:
        ValueError: `COMFYUI_PATH` is set and holds no ComfyUI.
    """
    named = os.environ.get("COMFYUI_PATH")
    if named:
        if not _is_comfyui(Path(named)):
            raise ValueError(f"COMFYUI_PATH is '{named}', and there is no ComfyUI (main.py) in it")
        return Path(named).resolve()
    return next((folder for folder in (USUAL, OURS) if _is_comfyui(folder)), None)


def clone_comfyui() -> str | None:
    """Clones ComfyUI into `.comfy/`. Returns why it could not be had, or None."""
    command = ["git", "clone", "--quiet", "--depth", "1", "--branch", VERSION, REPOSITORY, str(OURS)]
    quiet = {**os.environ, "GIT_TERMINAL_PROMPT": "0"}
    try:
        subprocess.run(command, check=True, timeout=CLONE_TIMEOUT, env=quiet, capture_output=True, text=True)
    except subprocess.CalledProcessError as error:
        return error.stderr.strip().splitlines()[-1] if error.stderr.strip() else str(error)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return None


def _is_comfyui(folder: Path) -> bool:
    return (folder / "main.py").is_file() and (folder / "nodes.py").is_file()
