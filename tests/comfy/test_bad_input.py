"""Whatever is wrong, ComfyUI shows a sentence that says what and where."""

import pytest

from weft.headless.client import WorkflowError
from weft.tests.comfy.conftest import HEIGHT, WIDTH
from weft.tests.comfy.graphs import GONE, masked, node, str_match, untold

pytestmark = [pytest.mark.comfy, pytest.mark.each_comfyui]


def refused(editor, graph, *words):
    """The graph fails, and the message holds these words; the server goes on working."""
    with pytest.raises(WorkflowError) as failure:
        editor(graph)
    assert not untold(failure, words)


@pytest.mark.parametrize(
    ("model", "words"),
    {
        "gone": [GONE, "tiny"],
        "(none found: put a diffusers folder into models/diffusers)": ["put a diffusers folder into models/diffusers"],
        "hollow": ["'hollow' has no unet", "is the download complete?"],
        "pickled": ["pickled/unet", "pickle", "not loaded"],
        "truncated": ["truncated/unet", "not a whole safetensors file"],
    }.items(),
)
def test_models(editor, model, words):
    refused(editor, str_match(model=model), "WeftLoadModel (node model)", *words)


def test_a_folder_outside_the_model_folders_is_no_model(editor):
    refused(
        editor, str_match(model="../../custom_nodes/weft/toyworld/weights/video"), ("no model", "Value not in list")
    )


@pytest.mark.parametrize(
    ("clip", "words"),
    {
        "single.mp4": ["at least 2 frames"],
        "broken.mp4": ["broken.mp4", "Invalid data"],
        "absent.mp4": ["absent.mp4"],
    }.items(),
)
def test_clips(editor, clip, words):
    refused(editor, str_match(clip=clip), *words)


def test_a_size_that_does_not_divide(editor):
    graph = str_match()
    graph["crop"] = node("ImageCrop", image=["frames", 0], width=WIDTH - 1, height=HEIGHT, x=0, y=0)
    graph["encode"]["inputs"]["images"] = ["crop", 0]
    refused(editor, graph, f"frames are {WIDTH - 1}x{HEIGHT}", "divisible by 2", f"{WIDTH - 2}x{HEIGHT}")


def test_a_mask_of_another_length(editor):
    mask = {
        "mask video": node("LoadVideo", file="short.mp4"),
        "mask frames": node("GetVideoComponents", video=["mask video", 0]),
        "mask": node("ImageToMask", image=["mask frames", 0], channel="red"),
    }
    refused(editor, masked(mask), "the mask has 3 frames and the clip 4")


def test_a_mask_of_another_size(editor):
    mask = {"mask": node("SolidMask", value=1.0, width=WIDTH // 2, height=HEIGHT)}
    refused(editor, masked(mask), f"the mask is {WIDTH // 2}x{HEIGHT} pixels and the clip {WIDTH}x{HEIGHT}")


def test_a_mask_for_all_frames_is_fine(editor):
    mask = {"mask": node("SolidMask", value=1.0, width=WIDTH, height=HEIGHT)}
    assert editor(masked(mask)).bits == editor(str_match()).bits


def test_a_trajectory_of_another_model(editor):
    graph = str_match()
    graph["twin"] = node("WeftLoadModel", model="twin", dtype="float32")
    graph["sample"]["inputs"]["model"] = ["twin", 0]
    refused(editor, graph, "inverted with another model than 'twin'")


def test_a_prompt_of_another_model(editor):
    graph = str_match()
    graph["other"] = node("WeftLoadModel", model="toyworld/image", dtype="float32")
    graph["target"]["inputs"]["model"] = ["other", 0]
    refused(editor, graph, "'a blue circle'", "another model")


def test_a_prompt_of_a_model_with_the_same_text_encoder_is_as_good(editor):
    graph = str_match()
    whole = editor(graph)
    graph["twin"] = node("WeftLoadModel", model="twin", dtype="float32")
    graph["target"]["inputs"]["model"] = ["twin", 0]
    assert editor(graph).bits == whole.bits


def test_a_negative_strength(editor):
    refused(editor, str_match(strength=-1.0), "-1.0 smaller than min of 0.0", "strength")


@pytest.mark.parametrize("field", ["reduction", "step_mode", "heads", "levels"])
def test_an_unknown_choice(editor, field):
    refused(editor, str_match(**{field: "nonsense"}), "nonsense", field)


def test_the_server_still_edits(editor):
    """After all of the above."""
    assert editor(str_match()).pictures().std() > 1
