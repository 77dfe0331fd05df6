"""The shipped workflows run, and `make demo` gives the same with ComfyUI and without."""

import json

import pytest

from weft.headless import demo
from weft.headless.client import run_workflow
from weft.headless.graph import changed, read_graph
from weft.tests.conftest import ROOT
from weft.tests.numerics import PICTURE_LEVELS
from weft.toyworld import clip

pytestmark = pytest.mark.comfy
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


ALONE = [p for p in sorted((ROOT / "workflows" / "api").glob("*.json")) if not p.stem.endswith("_distributed")]


@pytest.mark.parametrize("path", ALONE, ids=lambda path: path.stem)
def test_shipped_workflows_run(server, path):
    result = run_workflow(server.url, path, few(read_graph(path)), [clip.CLIP])
    assert any(file["filename"].endswith(".mp4") for file in result.files())


def test_both_ways_agree(comfyui, tmp_path):
    graph = changed(read_graph(demo.WORKFLOW), few(read_graph(demo.WORKFLOW)))
    made = {via: demo.demo(path, graph, tmp_path / via) for via, path in {"comfyui": comfyui, "library": None}.items()}
    for via, metrics in made.items():
        assert metrics["via"] == via
        assert json.loads((tmp_path / via / "metrics.json").read_text()) == metrics
    for row in ("edit", "baseline"):
        assert made["comfyui"][row] == pytest.approx(made["library"][row], abs=0.01)
    pictures = [clip.read_video(tmp_path / via / "edit.mp4") for via in made]
    assert (pictures[0] - pictures[1]).abs().max() * 255 <= PICTURE_LEVELS
