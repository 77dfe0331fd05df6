"""A ComfyUI for all tests of this folder, spoken to over HTTP by the pack's own client; where several are found, those
marked `each_comfyui` run on each, and where `COMFYUI_PATH` names several, all do.

It is a process of its own: ComfyUI's `nodes` and `utils` would clash with ours, and it reads `sys.argv`.
"""

import importlib.util
import os
import shutil
from pathlib import Path

import pytest
import torch

from weft.headless.comfyui import find_comfyuis
from weft.headless.server import comfyui_server
from weft.tests.comfy.graphs import CLIP, Editor
from weft.tests.conftest import ROOT
from weft.toyworld import clip
from weft.workflows.build.browser import obstacle, open_pages

MODES = ("canvas", "vue")  # how the two pages draw nodes
PATIENCE = 120  # seconds of silence after which a test gives up
FRAMES, HEIGHT, WIDTH = 4, 16, 24


def pytest_collection_modifyitems(config, items):
    """Where `COMFYUI_PATH` does not ask for more, the second ComfyUI gets the tests alone that meet what differs among
    versions: nodes, inputs, workflows, models and the page. What our own stages do is tried on the first."""
    if os.environ.get("COMFYUI_PATH"):
        return
    others = set(find_comfyuis()[1:])
    spared = [item for item in items if _comfyui_of(item) in others and not item.get_closest_marker("each_comfyui")]
    config.hook.pytest_deselected(items=spared)
    items[:] = [item for item in items if item not in set(spared)]


def _comfyui_of(item):
    return item.callspec.params.get("comfyui") if hasattr(item, "callspec") else None


@pytest.fixture(scope="session", params=find_comfyuis() or [None], ids=lambda path: path.name if path else "none")
def comfyui(request):
    """ComfyUI's checkout, where it can run."""
    if request.param is None:
        pytest.skip("NOT TESTED INSIDE COMFYUI: none found; set COMFYUI_PATH and run `make test`")
    if importlib.util.find_spec("aiohttp") is None:
        pytest.skip("NOT TESTED INSIDE COMFYUI: its requirements are not installed here; run `make test`")
    return request.param


@pytest.fixture(scope="session")
def base(tmp_path_factory, comfyui):
    """The server's folder for models, input and output."""
    return tmp_path_factory.mktemp("comfyui")


@pytest.fixture(scope="session")
def server(comfyui, base, tiny_folder, tiny_instruct_folder):
    """ComfyUI with this pack and, in models/diffusers, `tiny` and models that differ from it."""
    models = base / "models" / "diffusers"
    for name in ("tiny", "twin", "replaced", "pickled", "truncated"):
        shutil.copytree(tiny_folder, models / name)
    for name in ("instruct", "instruct-twin"):
        shutil.copytree(tiny_instruct_folder, models / name)
    change_weights(models / "instruct-twin" / "unet")
    change_weights(models / "twin" / "unet")
    pickle_weights(models / "pickled" / "unet")
    truncate_weights(models / "truncated" / "unet")
    (base / "custom_nodes").mkdir()
    for name in ("counting_node.py", "stand_ins.py"):
        shutil.copy(Path(__file__).with_name(name), base / "custom_nodes")
    (models / "hollow").mkdir()
    shutil.copy(tiny_folder / "model_index.json", models / "hollow")
    paths = base / "extra_model_paths.yaml"
    paths.write_text(f"elsewhere:\n  base_path: {base / 'elsewhere'}\n  sams: sams\n")
    put_sams(base / "models" / "sams", base / "elsewhere" / "sams")
    put_clips(base / "models")
    put_bad_files(base / "models")
    flags = ["--cpu", "--extra-model-paths-config", str(paths)]
    with comfyui_server(comfyui, base, arguments=flags) as running:
        yield running


@pytest.fixture(scope="module")  # open pages are at work even where nobody looks
def pages(server):
    """ComfyUI's own page in a browser, twice: with nodes on the canvas, and with Vue nodes (`MODES`)."""
    if reason := obstacle():
        pytest.skip(f"NOT TESTED IN A BROWSER: {reason}")
    with open_pages(server.url, vue=(False, True)) as opened:
        yield opened


def require_elements(pages, mode, title):
    """Skips where the page does not draw the text of a node, which is ComfyUI's own: then it draws no element of ours
    either, and there is nothing to test. Vue nodes of older frontends are so."""
    text = f"""(() => {{
      const node = app.graph._nodes.find((n) => n.title === '{title}');
      const shown = node.widgets.some((w) => w.element?.tagName === 'TEXTAREA' && w.element.isConnected);
      return shown || !!document.querySelector(`[data-node-id="${{node.id}}"] textarea`);
    }})()"""
    job = {"act": [["view", title], ["wait", 2], ["read", text]], "only": MODES.index(mode)}
    if pages.do(job)[0]["seen"] != [True]:
        pytest.skip(f"NOT TESTED: here {mode} nodes draw no element, ComfyUI's own text neither (seen now)")


@pytest.fixture(scope="session")
def clips(server, tmp_path_factory):
    """Clips in the server's input folder; their content is noise, smooth enough to survive the codec."""
    folder = tmp_path_factory.mktemp("clips")
    noise = torch.rand(FRAMES, HEIGHT // 4, WIDTH // 4, 3, generator=torch.Generator().manual_seed(0))
    frames = noise.repeat_interleave(4, 1).repeat_interleave(4, 2)
    for name, content in {CLIP: frames, "single.mp4": frames[:1], "short.mp4": frames[:3]}.items():
        clip.write_video(folder / name, content)
        server.upload(folder / name)
    (folder / "broken.mp4").write_bytes(b"this is not a video")
    server.upload(folder / "broken.mp4")
    return folder


@pytest.fixture
def editor(server, clips):
    """Runs graphs on `server`; the clip counts as new, so nothing that depends on it is cached from another test."""
    server.upload(clips / CLIP)
    return Editor(server, PATIENCE)


def put_sams(here, there):
    """The toy world's SAM as a .pth, in a folder that only extra_model_paths.yaml knows; and half of it."""
    from safetensors.torch import load_file

    shipped = ROOT / "toyworld" / "weights" / "sam" / "sam.safetensors"
    for folder in (here, there):
        folder.mkdir(parents=True)
    (here / "half.safetensors").write_bytes(shipped.read_bytes()[:-1000])
    torch.save(load_file(shipped), there / "copy.pth")


def put_clips(models):
    """The toy world's CLIP where ComfyUI keeps text encoders, half of it, and a text encoder that is no whole CLIP."""
    shipped = ROOT / "toyworld" / "weights"
    shutil.copytree(shipped / "clip", models / "text_encoders" / "mine" / "whole")
    shutil.copytree(shipped / "clip", models / "clip" / "half")
    truncate_weights(models / "clip" / "half")
    shutil.copytree(shipped / "text_encoder", models / "clip" / "reader")


def put_bad_files(models):
    """What stands in model folders and cannot be read: JSON too deep for a parser, a pipe, a name that is no text."""
    for place in ("clip/deep", "sam2/deep", "diffusers/deep", "owlv2/deep"):
        (models / place).mkdir(parents=True)
        for name in ("config.json", "model_index.json"):
            (models / place / name).write_text("[" * 200_000)
    (models / "clip" / "pipe").mkdir()
    os.mkfifo(models / "clip" / "pipe" / "config.json")
    (models / "clip" / os.fsdecode(b"latin-\xe9")).mkdir()


def change_weights(folder):
    """One number of the network is another."""
    from safetensors.torch import load_file, save_file

    (file,) = folder.glob("*.safetensors")
    weights = load_file(file)
    weights["conv_in.weight"].view(-1)[0] += 1
    save_file(weights, file, metadata={"format": "pt"})


class Harmless:
    """What a pickle may hold besides tensors."""


def pickle_weights(folder):
    for file in folder.glob("*.safetensors"):
        file.unlink()
    torch.save({"weight": Harmless()}, folder / "diffusion_pytorch_model.bin")


def truncate_weights(folder):
    (file,) = folder.glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-100])
