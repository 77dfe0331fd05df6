"""What ComfyUI runs again, what it does not, and that the bits do not depend on it."""

import numpy as np
import pytest

from weft.tests.comfy.conftest import FRAMES, HEIGHT, WIDTH, change_weights
from weft.tests.comfy.graphs import CLIP, PLAN_AND_AFTER, node, plain, str_match

pytestmark = pytest.mark.comfy
COMPUTING = {"encode", "invert", "sample", "decode"}


def test_an_edit_comes_out(editor):
    pictures = editor(str_match()).pictures()
    assert pictures.shape == (FRAMES, HEIGHT, WIDTH, 3)
    assert pictures.std() > 1  # not black


def test_twice_gives_the_same_bits(editor, clips):
    first = editor(str_match())
    editor.server.upload(clips / CLIP)  # a new file, as far as ComfyUI knows
    second = editor(str_match())
    assert second.ran >= COMPUTING
    assert first.bits == second.bits
    assert np.array_equal(first.pictures(), second.pictures())


def test_a_rerun_computes_nothing(editor):
    editor(str_match())
    assert editor(str_match()).ran == set()


def test_replaced_weights_are_loaded_anew(editor, base):
    """The index is as it was; one number of the network is another."""
    before = editor(str_match(model="replaced"))
    assert editor(str_match(model="replaced")).ran == set()
    change_weights(base / "models" / "diffusers" / "replaced" / "unet")
    after = editor(str_match(model="replaced"))
    assert "model" in after.ran
    assert after.bits != before.bits


def test_a_change_of_strength_reruns_plan_and_sampler_alone(editor):
    first = editor(str_match(strength=0.5))
    second = editor(str_match(strength=1.0))
    assert second.ran == PLAN_AND_AFTER
    assert first.bits != second.bits


def test_strength_0_is_the_plain_edit(editor):
    assert editor(str_match(strength=0)).bits == editor(plain()).bits


def test_guidance_survives_an_unloaded_model(editor):
    """Weights that ComfyUI has moved must still let gradients through."""
    before = editor(str_match())
    editor.server.request("/free", {"unload_models": True})
    # ComfyUI unloads when it is idle, before or after the next run: the second is surely after it.
    editor(str_match(strength=1.0))
    after = editor(str_match())
    assert after.ran == PLAN_AND_AFTER  # the same model object went on being used
    assert after.bits == before.bits


def test_the_score_can_be_looked_at(editor):
    graph = str_match()
    graph["score"] = node(
        "WeftPreviewSTRScore",
        model=["model", 0],
        trajectory=["invert", 0],
        x=0.5,
        y=0.5,
        noise=0.5,
        neighbours=1,
        levels="all",
    )
    assert len(editor(graph).result.outputs["score"]["images"]) == FRAMES


def test_figures_are_shown(editor):
    graph = str_match()
    graph["figures"] = node("WeftEvaluateEdit", source=["frames", 0], edit=["decode", 0], reference=["frames", 0])
    (text,) = editor(graph).result.outputs["figures"]["text"]
    assert "psnr_source" in text
    assert "psnr_reference" in text
