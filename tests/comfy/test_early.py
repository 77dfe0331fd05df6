"""What is wrong is said before the dear work, core's modifiers are not ignored, and what shows something runs alone."""

import pytest

from weft.headless.client import WorkflowError
from weft.tests.comfy.graphs import node, plain, str_match

pytestmark = [pytest.mark.comfy, pytest.mark.each_comfyui]
CANDIDATES = {"frame": 0, "count": 2, "choice": 0, "seed": 0, "steps": 2, "cfg": 2.0, "image_cfg": 1.5}


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


def test_what_no_clip_could_mend_is_told_before_the_inversion_though_no_clip_is_wired_in(editor):
    graph = plain(steps=3)  # on a video model
    graph["method"] = node(
        "WeftGatherSwapAttention", group_size=2, layers="self", adapt_steps=0, gpu_gb=2.0, budget_gb=8.0
    )
    graph["sample"]["inputs"]["plan"] = ["method", 0]
    ran, message = started(editor, graph)
    assert "Gather-Swap Attention evaluates single frames" in message
    assert "invert" not in ran


def test_candidates_of_a_model_that_takes_no_instruction_are_refused_at_once(editor):
    graph = plain(steps=3)
    told = {"model": ["model", 0], "instruction": ["target", 0]}
    graph["candidates"] = node("WeftEditCandidates", **told, images=["frames", 0], **CANDIDATES)
    graph["encode"]["inputs"]["images"] = ["candidates", 1]
    ran, message = started(editor, graph)
    assert "VIA wants an instruction model" in message
    assert ran[-1] == "candidates"


@pytest.mark.parametrize(
    ("model", "save_as", "said"),
    [("tiny", "", "VIA wants an instruction model"), ("instruct", "../../evil", "want a plain file name")],
)
def test_an_adapter_that_cannot_be_is_refused_before_its_candidates_are_made(editor, model, save_as, said):
    graph, told = plain(steps=3, model=model), {"model": ["model", 0], "instruction": ["target", 0]}
    graph["candidates"] = node("WeftEditCandidates", **told, images=["frames", 0], **CANDIDATES)
    pair = {"source": ["candidates", 2], "edited": ["candidates", 1]}
    training = {"steps": 2, "rate": 1e-3, "rank": 2, "drop": 0.05, "seed": 0, "save_as": save_as}
    graph["adapt"] = node("WeftTestTimeAdaptation", **told, **pair, **training)
    graph["encode"]["inputs"]["images"] = ["adapt", 1]
    ran, message = started(editor, graph)
    assert said in message
    assert "candidates" not in ran


def test_a_file_that_cannot_be_is_refused_before_the_inversion(editor):
    graph = plain(steps=3)
    graph["keep"] = node("WeftSaveTrajectory", trajectory=["invert", 0], name="../evil")
    graph["sample"]["inputs"]["trajectory"] = ["keep", 0]
    ran, message = started(editor, graph)
    assert "want a plain file name" in message
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
