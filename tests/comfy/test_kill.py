"""ComfyUI is killed in the middle of a run, started again, and given the same prompt: the same bits come out."""

import shutil
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from weft.headless.client import WorkflowError
from weft.headless.server import comfyui_server
from weft.tests.comfy.conftest import FRAMES, HEIGHT, PATIENCE, WIDTH
from weft.tests.comfy.graphs import CLIP, Editor, filled, node, plain
from weft.tests.comfy.test_interrupt import EVALUATION
from weft.toyworld import clip

pytestmark = pytest.mark.comfy
STEPS = 6


@pytest.fixture(scope="module")
def base(tmp_path_factory, tiny_folder):
    """The folder of a server that is started anew after each kill."""
    base = tmp_path_factory.mktemp("killed")
    shutil.copytree(tiny_folder, base / "models" / "diffusers" / "tiny")
    for folder in ("custom_nodes", "input"):
        (base / folder).mkdir()
    shutil.copy(Path(__file__).with_name("counting_node.py"), base / "custom_nodes")
    noise = torch.rand(FRAMES, HEIGHT // 4, WIDTH // 4, 3, generator=torch.Generator().manual_seed(0))
    clip.write_video(base / "input" / CLIP, noise.repeat_interleave(4, 1).repeat_interleave(4, 2))
    return base


def counted(at, **inversion):
    """An edit that tells of the evaluations of its inversion or its sampler; the file `kill_at` acts there."""
    graph = plain(steps=STEPS)
    graph["count"] = node("CountEvaluations")
    graph[at]["inputs"]["plan"] = ["count", 0]
    graph["invert"]["inputs"] |= inversion
    return graph


class Counting:
    """Evaluations that began, by node."""

    def __init__(self):
        self.node, self.of = None, {"invert": 0, "sample": 0}

    def __call__(self, kind, data):
        if kind == "executing":
            self.node = data["node"]
        elif kind == EVALUATION:
            self.of[self.node] += 1


@contextmanager
def started(comfyui, base):
    with comfyui_server(comfyui, base, arguments=["--cpu"]) as server:
        yield Editor(server, PATIENCE)


@pytest.mark.parametrize(
    ("at", "step", "missing"),
    # Step 0 is the noisiest: an inversion gets there last.
    [("invert", 2, STEPS - 3), ("sample", 3, STEPS)],
)
def test_killed_and_run_again_it_gives_the_same_bits(comfyui, base, at, step, missing):
    shutil.rmtree(base / "output" / "weft_inversions", ignore_errors=True)
    graph, counting = counted(at, resume=True), Counting()
    (base / "input" / "kill_at").write_text(str(step))
    with started(comfyui, base) as edit, pytest.raises(WorkflowError, match="went away"):
        edit(graph, counting)
    assert not (base / "input" / "kill_at").exists()
    again = Counting()
    with started(comfyui, base) as edit:
        after = edit(graph, again)
        assert again.of[at] == missing
        assert after.bits == edit(counted(at)).bits


def test_a_trajectory_that_was_saved_gives_the_edit_after_a_restart(comfyui, base):
    graph = plain(steps=STEPS)
    graph["save"] = filled("WeftSaveTrajectory", trajectory=["invert", 0], name="mine")
    with started(comfyui, base) as edit:
        before = edit(graph)
    (told,) = before.result.outputs["save"]["text"]
    size = (base / "output" / "weft" / "mine.safetensors").stat().st_size
    assert told == f"mine.safetensors, {size / 2**20:.1f} MB"
    del graph["save"]
    wires = {"model": ["model", 0], "source_prompt": ["source", 0]}
    graph["invert"] = node("WeftLoadTrajectory", **wires, trajectory="mine.safetensors")
    with started(comfyui, base) as edit:
        assert edit(graph).bits == before.bits
        graph["source"]["inputs"]["text"] = "a blue square"
        with pytest.raises(WorkflowError, match="made with the source prompt 'a red square'"):
            edit(graph)
