"""Tests say `from weft.engine import ...`, whatever the checkout folder is called.

The repository root stays off `sys.path`: our `nodes/` would hide ComfyUI's `nodes.py`.
"""

import importlib.util
import re
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
OF_THEIR_OWN = {f"tests/{file}.py" for file in ("comfy/test_trees", "kernels/test_compile_gate", "kernels/test_fused")}
sys.path[:] = [p for p in sys.path if Path(p or ".").resolve() != ROOT]

if "weft" not in sys.modules:
    spec = importlib.util.spec_from_file_location("weft", ROOT / "weft.py")
    weft = importlib.util.module_from_spec(spec)
    sys.modules["weft"] = weft
    spec.loader.exec_module(weft)


@pytest.hookimpl(optionalhook=True)  # pytest-xdist need not be there
def pytest_xdist_make_scheduler(config, log):
    """Side by side (`-n`), the tests of a file stay in one process, and so do all that share a ComfyUI: it is started
    once. Tests that are processes of their own share nothing, and go to whoever is free."""
    from xdist.scheduler import LoadScopeScheduling

    from weft.headless.comfyui import find_comfyuis

    names = sorted((path.name for path in find_comfyuis()), key=len, reverse=True)

    class ByFileOrComfyUI(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            file, _, test = nodeid.partition("::")
            if file in OF_THEIR_OWN:
                return nodeid
            ids = re.split(r"[\[\]]", test)[1:]
            return next((name for name in names if "tests/comfy/" in file and any(name in i for i in ids)), file)

    return ByFileOrComfyUI(config, log)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def poisoned_memory(monkeypatch):
    """`torch.empty` gives NaN, so a kernel that forgets to write an output fails."""
    empty, empty_like = torch.empty, torch.empty_like

    def poison(tensor):
        return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor.fill_(-(2**30))

    monkeypatch.setattr(torch, "empty", lambda *a, **k: poison(empty(*a, **k)))
    monkeypatch.setattr(torch, "empty_like", lambda *a, **k: poison(empty_like(*a, **k)))


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    """A text-to-video diffusers folder with random weights. Copy it before changing anything in it."""
    from weft.tests.tiny import make_folder

    return make_folder(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def _tiny(tiny_folder):
    return _load(tiny_folder)


@pytest.fixture(scope="session")
def _tiny64(tiny_folder):
    backbone = _load(tiny_folder)
    torch.nn.Module.to(backbone.denoiser.network, torch.float64)
    return backbone


@pytest.fixture
def tiny(_tiny):
    """That folder loaded, shared by all tests; whatever a test does to it, it must be as before afterwards."""
    yield from _as_before(_tiny)


@pytest.fixture
def tiny64(_tiny64):
    """The same with its network in float64, whose output is rounded to float32 all the same."""
    yield from _as_before(_tiny64)


@pytest.fixture(scope="session")
def tiny_image_folder(tmp_path_factory):
    """The same for an image model."""
    from weft.tests.tiny import make_folder

    return make_folder(tmp_path_factory.mktemp("models") / "tiny-image", kind="image")


@pytest.fixture(scope="session")
def tiny_instruct_folder(tmp_path_factory):
    """The same for an image model that is given the source's picture and an instruction."""
    from weft.tests.tiny import make_folder

    return make_folder(tmp_path_factory.mktemp("models") / "tiny-instruct", kind="instruct")


@pytest.fixture(scope="session")
def _image(tiny_image_folder):
    return _load(tiny_image_folder)


@pytest.fixture(scope="session")
def _image64(tiny_image_folder):
    backbone = _load(tiny_image_folder)
    torch.nn.Module.to(backbone.denoiser.network, torch.float64)
    return backbone


@pytest.fixture(scope="session")
def _instruct(tiny_instruct_folder):
    return _load(tiny_instruct_folder)


@pytest.fixture(scope="session")
def _instruct64(tiny_instruct_folder):
    backbone = _load(tiny_instruct_folder)
    torch.nn.Module.to(backbone.denoiser.network, torch.float64)
    return backbone


@pytest.fixture
def tiny_image(_image):
    """The image model loaded, as `tiny` is."""
    yield from _as_before(_image)


@pytest.fixture
def tiny_image64(_image64):
    """As `tiny64`."""
    yield from _as_before(_image64)


@pytest.fixture
def tiny_instruct(_instruct):
    """The instruction model loaded, as `tiny` is."""
    yield from _as_before(_instruct)


@pytest.fixture
def tiny_instruct64(_instruct64):
    """As `tiny64`."""
    yield from _as_before(_instruct64)


def _load(folder):
    from weft.backbones.diffusers.loading import load_backbone
    from weft.backbones.memory import PlainMemory

    return load_backbone(folder, dtype="float32", memory=PlainMemory("cpu"))


def _as_before(backbone):
    before = _attached(backbone.denoiser.network)
    yield backbone
    assert _attached(backbone.denoiser.network) == before, "a processor or a hook was left on the network"


def _attached(network):
    """Everything a control may leave behind: attention processors and hooks, by identity."""
    hooks = [list(m._forward_hooks) + list(m._forward_pre_hooks) for m in network.modules()]
    return {name: id(p) for name, p in network.attn_processors.items()}, hooks
