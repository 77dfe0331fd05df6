"""Figures of an edit inside ComfyUI."""

import json

import pytest

from weft.headless.client import WorkflowError
from weft.tests.comfy.conftest import FRAMES, HEIGHT, PATIENCE, WIDTH
from weft.tests.comfy.graphs import CLIP, node

pytestmark = pytest.mark.comfy
FIGURES = ["psnr_source", "psnr_background", "psnr_edited", "ssim_source", "flicker_source", "flicker_edit"]


@pytest.fixture
def run(server, clips):
    def run(graph, listen=lambda kind, data: None):
        return server.run(graph, listen, PATIENCE)

    return run


def compared(edit=CLIP, white=1.0):
    """A clip held against another, with a mask that is all of one value."""
    return {
        "video": node("LoadVideo", file=CLIP),
        "frames": node("GetVideoComponents", video=["video", 0]),
        "edited": node("LoadVideo", file=edit),
        "edit": node("GetVideoComponents", video=["edited", 0]),
        "mask": node("SolidMask", value=white, width=WIDTH, height=HEIGHT),
        "figures": node("WeftEvaluateEdit", source=["frames", 0], edit=["edit", 0], mask=["mask", 0]),
        "told": node("PreviewAny", source=["figures", 1]),
    }


@pytest.mark.parametrize(("white", "missing"), [(1.0, "psnr_background"), (0.0, "psnr_edited")])
def test_a_figure_that_cannot_be_computed_is_left_out_with_a_note(run, white, missing):
    steps = []
    result = run(compared(white=white), lambda kind, data: kind == "progress" and steps.append(data))
    told = json.loads(result.outputs["told"]["text"][0])
    assert set(told) == set(FIGURES) - {missing} | {"left_out"}
    assert told["left_out"] == {missing: "no pixels to compare: the mask covers everything or nothing"}
    (text,) = result.outputs["figures"]["text"]
    assert f"{missing:<16} left out: no pixels to compare" in text
    assert text.splitlines()[0] == "psnr_source        90.00 dB"
    assert [data["value"] for data in steps if data["node"] == "figures"][-1] == len(FIGURES) * FRAMES


def test_clips_that_differ_end_the_run(run):
    with pytest.raises(WorkflowError, match=r"node figures.*compare clips of the same frame count"):
        run(compared("short.mp4"))
