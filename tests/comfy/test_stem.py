"""STEM inversion, TokenFlow and FateZero inside ComfyUI: what comes out, and what a change runs again."""

import json

import pytest

from weft.tests.comfy.conftest import FRAMES, HEIGHT, WIDTH
from weft.tests.comfy.graphs import node, str_match

pytestmark = pytest.mark.comfy
BASES = {"bases": 8, "iterations": 2, "temperature": 0.01, "space": "key_per_head", "init": "normal", "em_frames": 0}
BASES |= {"seed": 0, "skip_dead": False, "tokens_per_base": 2}
TOKEN_FLOW = {"batch": 3, "feature_steps": 2, "attention_steps": 1, "pivot_seed": 0, "blend": "sigmoid"}
FATE_ZERO = {"words": "square", "self_replace": 0.8, "cross_replace": 0.8, "threshold": 0.3, "mapping": "refine"}
FATE_ZERO |= {"reweight": "blue=2", "key_frames": "previous_and_first", "most_tokens": 1024}
METHODS = {"WeftTokenFlow": TOKEN_FLOW, "WeftFateZero": FATE_ZERO}


def stem(kind, bases=(), **numbers):
    """Inversion by bases, an edit by `kind`, on the image model that ships."""
    graph = str_match(model="toyworld/image", steps=3)
    del graph["str"]
    given = {"model": ["model", 0], "latent": ["encode", 0], "source_prompt": ["source", 0], "steps": 3}
    graph["invert"] = node("WeftSTEMInversion", **given, **BASES | dict(bases))
    graph["method"] = node(kind, **METHODS[kind] | numbers)
    graph["sample"]["inputs"]["plan"] = ["method", 0]
    return graph


@pytest.mark.parametrize("kind", sorted(METHODS))
def test_an_edit_comes_out_and_a_change_of_the_method_does_not_invert_again(editor, kind):
    first = editor(stem(kind))
    assert first.pictures().shape == (FRAMES, HEIGHT, WIDTH, 3)
    assert first.pictures().std() > 1  # not black
    change = {"WeftTokenFlow": {"pivot_seed": 1}, "WeftFateZero": {"threshold": 2.0}}[kind]
    second = editor(stem(kind, **change))
    assert second.ran == {"method", "sample", "latent", "decode", "pictures"}
    assert second.bits != first.bits
    assert editor(stem(kind, bases={"seed": 1})).ran >= {"invert", "sample"}


def test_the_replay_and_the_log_come_out_of_the_inversion(editor):
    graph = stem("WeftTokenFlow")
    graph["sample"]["inputs"] |= {"positive": ["source", 0], "plan": ["invert", 1], "cfg": 1.0}
    graph["figures"] = node("WeftEvaluateEdit", source=["frames", 0], edit=["decode", 0])
    graph["log"] = node("PreviewAny", source=["invert", 2])
    result = editor(graph).result
    (figures,) = result.outputs["figures"]["text"]
    (log,) = result.outputs["log"]["text"]
    assert "psnr_source" in figures
    assert {"fewest_bases", "dead_bases", "step"} == set(json.loads(log)[0])


def test_bases_can_be_shared_with_fate_zero(editor):
    graph = stem("WeftFateZero")
    graph["bases"] = node("WeftSTEMAttention", **BASES, shared=True)
    graph["method"]["inputs"]["plan"] = ["bases", 0]
    assert editor(graph).bits != editor(stem("WeftFateZero")).bits


def test_a_word_that_is_not_there_is_named(editor):
    with pytest.raises(Exception, match="does not have the word 'circle'"):
        editor(stem("WeftFateZero", words="circle"))
