"""Where ComfyUI is: named by the user, in its usual place, or cloned beside the pack."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
USUAL = tuple(Path.home() / "comfy" / name for name in ("ComfyUI", "ComfyUI-new"))
OURS = ROOT / ".comfy" / "ComfyUI"
REPOSITORY = "https://github.com/comfyanonymous/ComfyUI"
VERSION = "v0.3.64"  # the oldest supported, and the one the pack is tested with
CLONE_TIMEOUT = 300  # seconds
UNUSED_BY_US = ("torch", "torchvision", "torchaudio")  # two are pinned in `environment.py`, audio it starts without


def find_comfyui() -> Path | None:
    """The folder of a ComfyUI checkout, the first of `find_comfyuis`."""
    return next(iter(find_comfyuis()), None)


def find_comfyuis() -> list[Path]:
    """ComfyUI checkouts: those that `COMFYUI_PATH` names, several as in PATH; else `~/comfy/ComfyUI` and
    `~/comfy/ComfyUI-new`, or the one that `clone_comfyui` made.

    Raises:
        ValueError: `COMFYUI_PATH` names a folder that holds no ComfyUI.
    """
    named = [Path(part) for part in os.environ.get("COMFYUI_PATH", "").split(os.pathsep) if part]
    for folder in named:
        if not _is_comfyui(folder):
            raise ValueError(f"COMFYUI_PATH names '{folder}', and there is no ComfyUI (main.py) in it")
    if named:
        return [folder.resolve() for folder in named]
    return [folder for folder in USUAL if _is_comfyui(folder)] or [folder for folder in (OURS,) if _is_comfyui(folder)]


def comfyui_requirements(comfyui: Path) -> list[str]:
    """What ComfyUI asks for, less torch and its kin."""
    lines = (line.split("#")[0].strip() for line in (comfyui / "requirements.txt").read_text().splitlines())
    return [line for line in lines if line and _package(line) not in UNUSED_BY_US]


def _package(requirement: str) -> str:
    return re.split(r"[\s<>=!~\[;]", requirement)[0].lower()


def interpreter_of(comfyui: Path) -> Path:
    """The Python that runs a checkout: this one where it has all that the checkout asks for; else that of a venv in it
    or beside it (`ComfyUI-new` has `venv-new`), if there is one."""
    if all(_installed(_package(line)) for line in comfyui_requirements(comfyui)):
        return Path(sys.executable)
    beside = comfyui.parent / comfyui.name.replace("ComfyUI", "venv")
    for folder in (comfyui / ".venv", comfyui / "venv", *([beside] if beside != comfyui else [])):
        for python in (folder / "bin" / "python", folder / "Scripts" / "python.exe"):
            if python.is_file():
                return python
    return Path(sys.executable)


def _installed(package: str) -> bool:
    try:
        return bool(version(package))
    except PackageNotFoundError:
        return False


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
