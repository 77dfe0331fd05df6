"""No prompt that can be sent over HTTP stops the queue: it is refused in one sentence, and the next one runs."""

import json

import pytest

from weft.headless.client import WorkflowError
from weft.tests.comfy.graphs import filled, node, str_match
from weft.tests.schemas import schemas

pytestmark = [pytest.mark.comfy, pytest.mark.each_comfyui]
HALF = "a \ud83d square"  # half of a surrogate pair, as a careless program cuts an emoji


def fate_zero(words):
    graph = str_match()
    graph["sample"]["inputs"]["plan"] = ["fate", 0]
    graph["fate"] = filled("WeftFateZero", words=words, key_frames="own")
    return graph


def with_input(at, name, value):
    graph = str_match()
    graph[at]["inputs"][name] = value
    return graph


def with_conditioning():
    """The prompt of ComfyUI's own text node has other things in it; here one that combines two of ours."""
    graph = str_match()
    graph["both"] = node("ConditioningCombine", conditioning_1=["source", 0], conditioning_2=["target", 0])
    graph["sample"]["inputs"]["positive"] = ["both", 0]
    return graph


REFUSED = {
    "half a character in a prompt": (lambda: with_input("target", "text", HALF), "lone surrogate"),
    "half a character in words": (lambda: fate_zero(HALF), "lone surrogate"),
    "half a character in a menu": (lambda: with_input("model", "model", HALF), ""),
    "text on a model": (lambda: with_input("encode", "model", "tiny"), "(WEFT_MODEL) wants a wire"),
    "number on frames": (lambda: with_input("encode", "images", 3), "(IMAGE) wants frames"),
    "object on a latent": (lambda: with_input("invert", "latent", {"samples": "no"}), "(LATENT) wants latents"),
    "text on a plan": (lambda: with_input("sample", "plan", "none"), "(WEFT_PLAN) wants a wire"),
    "text on a conditioning": (lambda: with_input("sample", "positive", "a cat"), "wants an encoded prompt"),
    "list on a menu": (lambda: with_input("model", "model", {"__value__": ["tiny", "twin", "x"]}), ""),
    "list on a choice": (lambda: with_input("str", "heads", {"__value__": ["mean"]}), ""),
    "two prompts in one": (with_conditioning, "combines 2 prompts"),
}


@pytest.mark.parametrize(("graph", "words"), REFUSED.values(), ids=REFUSED)
def test_a_bad_prompt_is_refused_and_the_next_one_runs(editor, graph, words):
    with pytest.raises(WorkflowError) as refusal:
        editor(graph())
    assert words in str(refusal.value)
    assert "Traceback" not in str(refusal.value)
    assert editor(str_match()).bits


def test_one_bad_file_in_a_model_folder_leaves_every_node(server):
    """See `put_bad_files`: the server started with them, and its menus were filled again for this."""
    known = json.loads(server.request("/object_info"))
    assert set(schemas()) <= set(known)
    assert "mine/whole" in str(known["WeftLoadCLIP"]["input"]["required"]["model"])
