"""The shipped workflows run, and `make demo` gives the same with ComfyUI and without."""

import json
import subprocess

import pytest
import torch

from weft.headless import demo
from weft.headless.client import run_workflow
from weft.headless.comfyui import interpreter_of
from weft.headless.graph import changed, read_graph
from weft.tests.conftest import ROOT
from weft.tests.numerics import PICTURE_LEVELS
from weft.toyworld import clip
from weft.workflows.build.papers import NAMES as PAPERS

pytestmark = [pytest.mark.comfy, pytest.mark.each_comfyui]
FEW = {
    "WeftDDIMInversion.steps": 4,
    "WeftDDIMInversion.edit_steps": 2,
    "WeftSTEMInversion.steps": 4,
    "WeftAddNoise.steps": 2,
    "WeftCoupledEdit.steps": 4,
    "WeftTestTimeAdaptation.steps": 2,
}


def few(graph):
    """Those of FEW that the graph has a node for."""
    kinds = {node["class_type"] for node in graph.values()}
    return {name: steps for name, steps in FEW.items() if name.split(".")[0] in kinds}


NATIVE, SEVERAL = "native_", "_distributed"  # those of `test_native.py`, and those that want several machines
API = sorted((ROOT / "workflows" / "api").glob("*.json"))
# What needs several machines or other models has tests of its own.
ALONE = [p for p in API if not p.stem.startswith(NATIVE) and not p.stem.endswith(SEVERAL) and p.stem not in PAPERS]


@pytest.mark.parametrize("path", ALONE, ids=lambda path: path.stem)
def test_shipped_workflows_run(server, path):
    result = run_workflow(server.url, path, few(read_graph(path)), [clip.CLIP])
    assert any(file["filename"].endswith(".mp4") for file in result.files())


# ComfyUI's reader of videos, alone: versions differ in it by less than a level, and metrics see that.
READ = """
import sys
sys.path.insert(0, {comfyui!r})
sys.argv = ["x", "--cpu"]
import comfy.options
comfy.options.enable_args_parsing()
import torch
from comfy_api.input_impl import VideoFromFile
torch.save(VideoFromFile({clip!r}).get_components().images.clone(), {out!r})
"""


def read_by(comfyui, path, out):
    """The frames of a video as this ComfyUI reads them."""
    code = READ.format(comfyui=str(comfyui), clip=str(path), out=str(out))
    subprocess.run([interpreter_of(comfyui), "-c", code], check=True, capture_output=True)
    return torch.load(out)


def test_the_shipped_clip_reads_alike(comfyui, tmp_path):
    """Colors at the full resolution, so that no reader has to make any up."""
    frames = read_by(comfyui, clip.CLIP, tmp_path / "frames.pt")
    assert (frames - clip.read_video(clip.CLIP)).abs().max() * 255 <= PICTURE_LEVELS


def test_both_ways_agree(comfyui, tmp_path, monkeypatch):
    """In the frames: videos are written by ComfyUI's encoder, whose settings differ by version, or by ours."""
    own, frames = clip.read_video, read_by(comfyui, clip.CLIP, tmp_path / "frames.pt")
    monkeypatch.setattr(clip, "read_video", lambda path: frames if path == clip.CLIP else own(path))
    sheets = []
    monkeypatch.setattr(demo, "contact_sheet", lambda clips, *_, **__: sheets.append(clips))
    graph = changed(demo.demo_graph(), few(demo.demo_graph()))
    made = {via: demo.demo(path, graph, tmp_path / via) for via, path in {"comfyui": comfyui, "library": None}.items()}
    for via, metrics in made.items():
        assert metrics["via"] == via
        assert json.loads((tmp_path / via / "metrics.json").read_text()) == metrics
        assert len(clip.read_video(tmp_path / via / "edit.mp4")) == len(frames)
    for row in ("edit", "baseline"):
        assert made["comfyui"][row] == pytest.approx(made["library"][row], abs=0.01)
    for by_comfyui, by_library in zip(*sheets, strict=True):
        assert (by_comfyui - by_library).abs().max() * 255 <= PICTURE_LEVELS
