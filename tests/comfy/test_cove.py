"""COVE inside ComfyUI: what comes out, what a change runs again, and what is refused."""

import pytest

from weft.headless.client import WorkflowError
from weft.tests.comfy.conftest import FRAMES, HEIGHT, WIDTH
from weft.tests.comfy.graphs import node, plain, str_match

pytestmark = pytest.mark.comfy
FIND = {"timestep": 261, "window": 9, "top_k": 3, "up_block": 2, "ensemble": 1, "noise": "shared", "seed": 0}
ALONG = {"merge_ratio": 0.5, "levels": "finest", "strength": 1.0, "tokens": "output", "merging": "bipartite"}
INJECT = {"feature_steps": 2, "attention_steps": 1, "places": "plug_and_play"}


def cove(find=(), along=(), steps=2, **options):
    """Correspondences that guide inversion and edit, on the image model that ships."""
    graph = str_match(model="toyworld/image", steps=steps, **options)
    graph["find"] = node("WeftCorrespondence", model=["model", 0], latent=["encode", 0], **FIND | dict(find))
    graph["inject"] = node("WeftFeatureInjection", **INJECT)
    graph["along"] = node(
        "WeftCorrespondenceAttention", plan=["inject", 0], correspondence=["find", 0], **ALONG | dict(along)
    )
    graph["over"] = node("WeftSpatioTemporalAttention", plan=["along", 0], frames=0)
    del graph["str"]
    graph["invert"]["inputs"]["plan"] = graph["sample"]["inputs"]["plan"] = ["over", 0]
    return graph


def test_an_edit_comes_out_and_is_the_same_twice(editor):
    first = editor(cove())
    assert first.pictures().shape == (FRAMES, HEIGHT, WIDTH, 3)
    assert first.pictures().std() > 1  # not black
    assert editor(cove()).ran == set()
    second = editor(cove(find={"seed": 1}))
    assert second.ran >= {"find", "along", "over", "invert", "sample"}
    assert second.ran.isdisjoint({"encode", "model"})
    assert second.bits != first.bits


def test_strength_0_is_the_edit_without_it(editor):
    graph = cove(along={"strength": 0.0})
    without = cove()
    without["over"]["inputs"]["plan"] = ["inject", 0]
    assert editor(graph).bits == editor(without).bits


def test_an_edit_may_take_fewer_steps_than_its_inversion(editor):
    graph = plain(model="toyworld/image", steps=4)
    whole = editor(graph)
    graph["invert"]["inputs"]["edit_steps"] = 2
    assert editor(graph).bits != whole.bits
    graph["invert"]["inputs"]["edit_steps"] = 3
    with pytest.raises(WorkflowError, match="4 steps cannot be thinned to 3"):
        editor(graph)


def test_matches_can_be_looked_at(editor):
    graph = cove()
    looking = {"correspondence": ["find", 0], "images": ["frames", 0], "frame": 1}
    graph["look"] = node("WeftPreviewCorrespondence", **looking, points="0.5 0.5; 0.1 0.9")
    assert len(editor(graph).result.outputs["look"]["images"]) == FRAMES
    graph["look"]["inputs"]["points"] = "the middle"
    with pytest.raises(WorkflowError, match="want points as 'x y; x y'"):
        editor(graph)


def test_a_correspondence_of_another_clip_is_refused(editor):
    graph = cove()
    graph["short"] = node("LoadVideo", file="short.mp4")
    graph["short frames"] = node("GetVideoComponents", video=["short", 0])
    graph["short latents"] = node("WeftEncodeFrames", model=["model", 0], images=["short frames", 0])
    graph["find"]["inputs"]["latent"] = ["short latents", 0]
    with pytest.raises(WorkflowError, match="the correspondence is for 3 frames"):
        editor(graph)


def test_the_order_of_the_plan_does_not_matter(editor):
    graph = cove()
    ordered = editor(cove())
    graph["over"]["inputs"]["plan"] = ["inject", 0]
    graph["along"]["inputs"]["plan"] = ["over", 0]
    graph["invert"]["inputs"]["plan"] = graph["sample"]["inputs"]["plan"] = ["along", 0]
    assert editor(graph).bits == ordered.bits
