"""Makes `.venv` with all that the demo and the tests need. A second call finds nothing to do.

    python3 -m weft.headless.environment    # from the pack's folder; standard library only

It holds the pack's requirements, pytest, ruff and Triton and, where ComfyUI is found or can be cloned, ComfyUI's own
requirements, so that one interpreter runs everything. A further ComfyUI that has a Python of its own is given what
the pack requires, as a user would.

With `--oldest` it makes `.venv-old` instead, with the oldest versions of what the pack requires, for one test.
"""

from __future__ import annotations

import argparse
import hashlib
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path

from .comfyui import ROOT, clone_comfyui, comfyui_requirements, find_comfyui, find_comfyuis, interpreter_of

VENV, OLDEST = ROOT / ".venv", ROOT / ".venv-old"
TORCH, TORCHVISION = "2.13.0", "0.28.0"  # a pair: each torchvision fits one torch, and neither may be replaced later
TRITON = "3.7.1"
OLD_TORCHVISION = "0.21.0"  # that of the oldest torch
TOOLS = ("pytest", "pytest-xdist", "ruff")
REQUIREMENTS = ROOT / "requirements.txt", Path(__file__).with_name("requirements.txt")  # the pack's, the client's
SHIM = Path(__file__).with_name("torchvision_cpu_ops.py")
VERSIONS = r"""
import sys
from importlib.metadata import distributions
here = {found.name.lower(): found.version for found in distributions()}
print(*(f"{name}={here.get(name, '')}" for name in sys.argv[1:]), sep="\n")
"""
FORGOTTEN_BY_COMFYUI = ("requests",)


def prepare(torch: str = TORCH, torchvision: str = TORCHVISION) -> None:
    """Makes or completes `.venv`, and the environments of further ComfyUIs.

    Raises:
        subprocess.CalledProcessError: pip failed; its own words are on the screen.
        ValueError: `COMFYUI_PATH` is wrong.
    """
    _make(torch, torchvision)
    for comfyui in find_comfyuis()[1:]:
        _complete(comfyui)


def _make(torch: str, torchvision: str) -> None:
    stamp = VENV / "weft.stamp"
    comfyui = find_comfyui()
    if stamp.exists() and stamp.read_text() == _fingerprint(comfyui, torch, torchvision):
        return
    start = time.monotonic()
    if comfyui is None:
        _say("no ComfyUI here: cloning it")
        problem = clone_comfyui()
        comfyui = find_comfyui()
        if problem:
            _say(f"ComfyUI cannot be had ({problem}): going on without it; set COMFYUI_PATH or `make clean` to retry")
    _say(f"making .venv with torch {torch}; once, and it takes a few minutes")
    subprocess.run([sys.executable, "-m", "venv", str(VENV)], check=True)
    python = interpreter()
    # torch goes first and alone, so that nothing that follows can choose another.
    _pip(python, f"torch=={torch}", f"torchvision=={torchvision}")
    _pip(python, f"torch=={torch}", f"torchvision=={torchvision}", *_read(REQUIREMENTS), *TOOLS)
    if not _imports(python, "triton") and (platform.system(), platform.machine()) == ("Linux", "x86_64"):
        _pip(python, f"triton=={TRITON}")  # a CUDA torch brings its own
    if comfyui is not None:
        _say(f"adding the requirements of ComfyUI in {comfyui}")
        _pip(python, f"torch=={torch}", *comfyui_requirements(comfyui), *FORGOTTEN_BY_COMFYUI)
    if not _imports(python, "torchvision"):
        _install_shim(python)
    stamp.write_text(_fingerprint(comfyui, torch, torchvision))
    _say(f".venv is ready after {time.monotonic() - start:.0f} s")


def _complete(comfyui: Path) -> None:
    """Adds what the pack requires to the Python of a checkout, whose torch stays as it is."""
    python = interpreter_of(comfyui)
    if python in (interpreter(), Path(sys.executable)):  # it has none of its own
        return
    packages = [line.split("==")[0] for line in oldest(REQUIREMENTS[0].read_text().splitlines())]
    found = subprocess.run([python, "-c", VERSIONS, *packages], check=True, capture_output=True, text=True).stdout
    if "" not in (versions := dict(line.split("=") for line in found.splitlines())).values():
        return
    _say(f"adding the pack's requirements to the environment of ComfyUI in {comfyui}")
    _pip(python, f"torch=={versions['torch']}", *_read(REQUIREMENTS[:1]))


def prepare_oldest() -> None:
    """Makes `.venv-old`, in which every package of requirements.txt has its lower bound.

    Raises:
        subprocess.CalledProcessError: pip cannot install them together; its own words are on the screen.
    """
    wanted = [*oldest(REQUIREMENTS[0].read_text().splitlines()), f"torchvision=={OLD_TORCHVISION}"]
    stamp = OLDEST / "weft.stamp"
    if stamp.exists() and stamp.read_text() == "\n".join(wanted):
        return
    _say(f"making {OLDEST.name} with {', '.join(wanted)}")
    subprocess.run([sys.executable, "-m", "venv", str(OLDEST)], check=True)
    _pip(interpreter(OLDEST), *wanted)
    stamp.write_text("\n".join(wanted))


def oldest(requirements: list[str]) -> list[str]:
    """Requirements at their lower bounds: "torch>=2.4" is "torch==2.4". ValueError for one that has none."""
    lines = [line for line in (line.split("#")[0].strip() for line in requirements) if line]
    if wrong := [line for line in lines if ">=" not in line]:
        raise ValueError(f"'{wrong[0]}' has no lower bound: want package>=version")
    return [line.replace(">=", "==") for line in lines]


def interpreter(venv: Path = VENV) -> Path:
    """The Python of a virtual environment."""
    return venv / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")


def _fingerprint(comfyui: Path | None, torch: str, torchvision: str) -> str:
    parts = [torch, torchvision, TRITON, *TOOLS, *(file.read_text() for file in REQUIREMENTS), SHIM.read_text()]
    parts += comfyui_requirements(comfyui) if comfyui else []
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _read(files: tuple[Path, ...]) -> list[str]:
    """As pip's arguments."""
    return [part for file in files for part in ("-r", str(file))]


def _pip(python: Path, *packages: str) -> None:
    subprocess.run([python, "-m", "pip", "install", "-qq", "--disable-pip-version-check", *packages], check=True)


def _imports(python: Path, module: str) -> bool:
    return subprocess.run([python, "-c", f"import {module}"], capture_output=True).returncode == 0


def _install_shim(python: Path) -> None:
    where = "import sysconfig; print(sysconfig.get_paths()['purelib'])"
    found = subprocess.run([python, "-c", where], check=True, capture_output=True, text=True)
    packages = Path(found.stdout.strip())
    shutil.copy(SHIM, packages / SHIM.name)
    (packages / "torchvision_cpu_ops.pth").write_text(f"import {SHIM.stem}\n")
    _say("torchvision has no C++ part that fits this torch: taught it to be imported without")
    if not _imports(python, "torchvision"):
        raise RuntimeError(f"torchvision cannot be imported: try `{python} -c 'import torchvision'`")


def _say(text: str) -> None:
    print(f"weft: {text}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--torch", default=TORCH, help="version of torch (default: %(default)s)")
    parser.add_argument("--torchvision", default=TORCHVISION, help="the version that fits it (default: %(default)s)")
    parser.add_argument("--oldest", action="store_true", help="make .venv-old instead, with the oldest libraries")
    options = parser.parse_args()
    try:
        prepare_oldest() if options.oldest else prepare(options.torch, options.torchvision)
    except (subprocess.CalledProcessError, ValueError, RuntimeError) as error:
        sys.exit(f"weft: {error}")


if __name__ == "__main__":
    main()
