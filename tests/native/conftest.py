"""ComfyUI's own classes in this process, on the CPU: small networks of random weights, as core makes them.

One process can hold one ComfyUI: the first that this Python can run. `tests/comfy/test_trees.py` runs this folder on
the others.
"""

import importlib.util
import logging
import os
import sys
from pathlib import Path

import pytest

from weft.headless.comfyui import find_comfyuis, interpreter_of

TREE = next((tree for tree in find_comfyuis() if interpreter_of(tree) == Path(sys.executable)), None)


def pytest_ignore_collect(collection_path, config):
    """Nothing here can be imported without ComfyUI."""
    return True if collection_path.name.startswith("test_") and not _ready() else None


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.parent.name == "native":
            item.add_marker(pytest.mark.comfy)


def _ready() -> bool:
    if TREE is None or importlib.util.find_spec("aiohttp") is None:
        return False
    if str(TREE) not in sys.path:
        sys.path.insert(0, str(TREE))
        import comfy.cli_args

        comfy.cli_args.args.cpu = os.environ.get("WEFT_NATIVE_DEVICE", "cpu") == "cpu"
        level = logging.getLogger().level
        import comfy.model_management

        logging.getLogger().setLevel(level)
    return True


@pytest.fixture(scope="session")
def sd_folder(tmp_path_factory):
    """A diffusers folder whose UNet core can hold too."""
    from weft.tests.native.unets import make_sd_folder

    return make_sd_folder(tmp_path_factory.mktemp("models") / "sd")


@pytest.fixture(scope="session")
def instruct_folder(tmp_path_factory):
    from weft.tests.native.unets import make_sd_folder

    return make_sd_folder(tmp_path_factory.mktemp("models") / "instruct", kind="instruct")


@pytest.fixture(scope="session")
def two_folder(tmp_path_factory):
    """Stable Diffusion 2's kind of UNet, which predicts v."""
    from weft.tests.native.unets import make_sd_folder

    return make_sd_folder(tmp_path_factory.mktemp("models") / "two", kind="two")
