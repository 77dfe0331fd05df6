"""Coupled Edit and regions inside ComfyUI: what comes out, what the mask keeps, and what is refused."""

import numpy as np
import pytest

from weft.headless.client import WorkflowError
from weft.tests.comfy.conftest import FRAMES, HEIGHT, WIDTH
from weft.tests.comfy.graphs import node, plain

pytestmark = pytest.mark.comfy
NUMBERS = {"steps": 4, "start": 0.75, "source_cfg": 1.0, "cfg": 3.0, "averages": 1, "pull": 0.0, "seed": 0}


def coupled(model="tiny", **inputs):
    """The small clip edited without an inversion."""
    graph = plain(model=model)
    del graph["invert"]
    prompts = {"source_prompt": ["source", 0], "target_prompt": ["target", 0]}
    graph["sample"] = node("WeftCoupledEdit", model=["model", 0], latent=["encode", 0], **prompts, **NUMBERS | inputs)
    return graph


def half(graph):
    """A mask of the left half, added to a graph."""
    graph["none"] = node("SolidMask", value=0.0, width=WIDTH, height=HEIGHT)
    graph["left"] = node("SolidMask", value=1.0, width=WIDTH // 2, height=HEIGHT)
    graph["mask"] = node("MaskComposite", destination=["none", 0], source=["left", 0], x=0, y=0, operation="add")
    return graph


def latents(edit):
    return np.frombuffer(edit.bits, np.float32).reshape(FRAMES, 4, HEIGHT // 2, WIDTH // 2)


def source(editor):
    graph = coupled()
    graph["latent"]["inputs"]["samples"] = ["encode", 0]
    return latents(editor(graph))


@pytest.mark.parametrize("model", ["tiny", "toyworld/image"])
def test_an_edit_comes_out_and_one_seed_gives_the_same_bits_again(editor, model):
    first = editor(coupled(model))
    assert first.pictures().shape == (FRAMES, HEIGHT, WIDTH, 3)
    assert editor(coupled(model, averages=2)).bits != first.bits
    assert editor(coupled(model)).bits == first.bits
    assert editor(coupled(model, seed=1)).bits != first.bits


def test_outside_the_mask_the_latent_stays_to_the_bit(editor):
    edited, clean = latents(editor(half(coupled(mask=["mask", 0])))), source(editor)
    middle = WIDTH // 4
    assert np.array_equal(edited[..., middle:], clean[..., middle:])
    assert not np.allclose(edited[..., :middle], clean[..., :middle])


def test_two_regions_change_and_the_rest_stays(editor):
    graph = half(coupled(plan=["two", 0]))
    graph["right"] = node(
        "MaskComposite", destination=["none", 0], source=["spot", 0], x=WIDTH - 8, y=0, operation="add"
    )
    graph["spot"] = node("SolidMask", value=1.0, width=8, height=HEIGHT)
    graph["one"] = node("WeftRegion", positive=["target", 0], mask=["mask", 0], strength=1.0)
    graph["two"] = node("WeftRegion", plan=["one", 0], positive=["source", 0], mask=["right", 0], strength=1.0)
    edited, clean = latents(editor(graph)), source(editor)
    left, right = WIDTH // 4, WIDTH // 2 - 4
    assert not np.allclose(edited[..., :left], clean[..., :left])
    assert np.array_equal(edited[..., left:right], clean[..., left:right])


def test_a_region_is_an_edit_of_the_sampler_too(editor):
    graph = plain()
    whole = editor(graph)
    graph["region"] = node("WeftRegion", positive=["target", 0], strength=1.0)
    graph["sample"]["inputs"] |= {"plan": ["region", 0], "positive": ["source", 0]}
    assert editor(graph).bits == whole.bits


def test_an_instruction_model_is_refused(editor):
    with pytest.raises(WorkflowError, match="is told what to do and given the source's picture"):
        editor(coupled("instruct"))


def test_a_mask_beside_regions_is_refused(editor):
    graph = half(coupled(plan=["one", 0], mask=["mask", 0]))
    graph["one"] = node("WeftRegion", positive=["target", 0], mask=["mask", 0], strength=1.0)
    with pytest.raises(WorkflowError, match="the plan has regions, each with a mask of its own"):
        editor(graph)
