"""What is wrong is said before the dear work, core's modifiers are not ignored, and what shows something runs alone."""

import pytest

from weft.headless.client import WorkflowError
from weft.tests.comfy.graphs import node, plain, str_match

pytestmark = pytest.mark.comfy


def started(editor, graph):
    """(the nodes that ran, the message of the one that failed)."""
    ran = []

    def listen(kind, data):
        if kind == "executing" and data.get("node"):
            ran.append(data["node"])

    with pytest.raises(WorkflowError) as failed:
        editor(graph, listen)
    return ran, str(failed.value)


def checked(graph):
    graph["sample"]["inputs"] |= {"source_latent": ["encode", 0], "source_prompt": ["source", 0]}
    return graph


def test_a_word_that_is_not_there_is_told_before_the_inversion(editor):
    graph = checked(plain(steps=3))
    fused = node("WeftFateZero", words="zebra", self_replace=0.8, cross_replace=0.8, threshold=0.3, mapping="refine")
    fused["inputs"] |= {"reweight": "", "key_frames": "own", "most_tokens": 1024}
    graph["method"] = fused
    graph["sample"]["inputs"]["plan"] = ["method", 0]
    ran, message = started(editor, graph)
    assert "zebra" in message
    assert "invert" not in ran


def test_a_mask_of_another_size_is_told_before_the_inversion(editor):
    graph = checked(plain(steps=3))
    graph["mask"] = node("SolidMask", value=1.0, width=8, height=8)
    graph["blend"] = node("WeftLatentBlend", mask=["mask", 0], schedule="hard", dilate=1)
    graph["sample"]["inputs"]["plan"] = ["blend", 0]
    ran, message = started(editor, graph)
    assert "mask" in message
    assert "invert" not in ran


def test_the_early_check_changes_no_bit(editor):
    assert editor(checked(str_match())).bits == editor(str_match()).bits


MODIFIED = {
    "ConditioningSetTimestepRange": ({"start": 0.0, "end": 0.5}, "timestep range"),
    "ConditioningSetAreaPercentage": ({"width": 0.5, "height": 1.0, "x": 0.0, "y": 0.0, "strength": 1.0}, "area"),
    "ConditioningSetMask": ({"mask": ["mask", 0], "strength": 1.0, "set_cond_area": "default"}, "mask"),
    "ConditioningConcat": ({"conditioning_from": ["source", 0]}, "joined"),
    "ConditioningCombine": ({"conditioning_2": ["source", 0]}, "combines 2 prompts"),
}


@pytest.mark.parametrize("kind", MODIFIED)
def test_a_changed_conditioning_is_refused_in_words(editor, kind):
    inputs, said = MODIFIED[kind]
    name = {"ConditioningConcat": "conditioning_to", "ConditioningCombine": "conditioning_1"}.get(kind, "conditioning")
    graph = plain(steps=3)
    graph["mask"] = node("SolidMask", value=1.0, width=24, height=16)
    graph["changed"] = node(kind, **{name: ["target", 0]}, **inputs)
    graph["sample"]["inputs"]["positive"] = ["changed", 0]
    ran, message = started(editor, graph)
    assert said in message
    assert "invert" not in ran


def test_a_noise_mask_is_refused_in_words(editor):
    graph = plain(steps=3)
    graph["mask"] = node("SolidMask", value=1.0, width=24, height=16)
    graph["masked"] = node("SetLatentNoiseMask", samples=["encode", 0], mask=["mask", 0])
    graph["invert"]["inputs"]["latent"] = ["masked", 0]
    _, message = started(editor, graph)
    assert "noise mask" in message
    assert "Latent Blend" in message
