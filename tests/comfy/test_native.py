"""The workflows on ComfyUI's own models run: its loaders, small random checkpoints of the real classes under the names
that the workflows ask for. Text encoders and the large VAEs have no small ones: see `stand_ins.py`."""

import subprocess
from pathlib import Path

import pytest

from weft.headless.comfyui import interpreter_of
from weft.headless.graph import read_graph
from weft.tests.conftest import ROOT
from weft.toyworld import clip

pytestmark = [pytest.mark.comfy, pytest.mark.each_comfyui]
NATIVE = sorted(path.stem for path in (ROOT / "workflows" / "api").glob("native_*.json"))
FEW = {"WeftDDIMInversion": 4, "WeftAddNoise": 2, "WeftCoupledEdit": 4}
TEXTS = {"sd": (768, 0), "ip2p": (768, 0), "wan": (4096, 0), "ltx": (48, 0), "hunyuan": (64, 768)}  # widths, pooled
LATENTS = {"sd": (4, 0), "ip2p": (4, 0), "wan": (16, 4), "hunyuan": (16, 4)}  # channels, frames in a latent frame
REPLACED = ("CLIPLoader", "DualCLIPLoader", "VAELoader")
PATIENCE = 240


@pytest.fixture(scope="module")
def checkpoints(server, base, comfyui):
    """In the server's folders, made by that ComfyUI's own classes."""
    maker = Path(__file__).with_name("make_checkpoints.py")
    command = [interpreter_of(comfyui), maker, comfyui, base / "models"]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    assert not done.returncode, done.stderr
    server.upload(clip.CLIP)


def small(name):
    """The graph with few steps, and stand-ins for what reads texts and pictures."""
    graph, family = read_graph(ROOT / "workflows" / "api" / f"{name}.json"), name.split("_")[1]
    clip_node = {"class_type": "StandInCLIP", "inputs": dict(zip(("width", "pooled"), TEXTS[family]))}
    vae_node = {"class_type": "StandInVAE", "inputs": dict(zip(("channels", "step"), LATENTS.get(family, ())))}
    for node in graph.values():
        kind, inputs = node["class_type"], node["inputs"]
        if kind in FEW:
            inputs["steps"] = FEW[kind]
            inputs |= {"edit_steps": 2} if inputs.get("edit_steps") else {}
        if "clip" in inputs:
            inputs["clip"] = ["clip", 0]
        if "vae" in inputs and family in LATENTS:
            inputs["vae"] = ["vae", 0]
    graph = {key: node for key, node in graph.items() if node["class_type"] not in REPLACED}
    return graph | {"clip": clip_node} | ({"vae": vae_node} if family in LATENTS else {})


@pytest.mark.parametrize("name", NATIVE)
def test_runs(server, checkpoints, name):
    result = server.run(small(name), patience=PATIENCE)
    assert any(file["filename"].endswith(".mp4") for file in result.files())
