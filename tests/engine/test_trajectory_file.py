"""A trajectory from disk is the one that went there, and is refused for another model or prompt."""

import json
from copy import copy
from dataclasses import replace

import pytest
import torch

from weft.engine.edit import edit
from weft.engine.inversion import add_noise, invert
from weft.engine.tensor_file import read_tensors, write_tensors
from weft.engine.trajectory_file import load_trajectory, save_trajectory
from weft.tests.tiny import make_latents

TEXT = "a red square"


@pytest.fixture
def kept(tiny, tmp_path):
    """(trajectory, its file)."""
    trajectory = invert(tiny, make_latents(), tiny.text.embed(TEXT), steps=3)
    path, size = save_trajectory(trajectory, tmp_path / "clip.safetensors")
    assert size == path.stat().st_size
    return trajectory, path


def test_an_inversion_comes_back_bit_for_bit_and_edits_alike(tiny, kept):
    trajectory, path = kept
    back = load_trajectory(path, tiny, tiny.text.embed(TEXT))
    assert torch.equal(back.latents, trajectory.latents)
    assert (back.schedule, back.convention, back.model) == (
        trajectory.schedule,
        trajectory.convention,
        trajectory.model,
    )
    target = tiny.text.embed("a blue circle")
    assert torch.equal(edit(tiny, back, target), edit(tiny, trajectory, target))


@pytest.mark.parametrize("noise", ["shared", "per_frame"])
def test_a_noised_clip_comes_back(tiny, tmp_path, noise):
    trajectory = add_noise(tiny, make_latents(), tiny.text.embed(""), steps=3, noise=noise)
    path, _ = save_trajectory(trajectory, tmp_path / "x.safetensors")
    back = load_trajectory(path, tiny, tiny.text.embed(""))
    assert all(torch.equal(back.at(level), trajectory.at(level)) for level in range(4))


def test_nothing_is_overwritten(kept):
    trajectory, path = kept
    before = path.read_bytes()
    other, _ = save_trajectory(trajectory, path)
    assert other.name == "clip_2.safetensors"
    assert path.read_bytes() == before


def test_another_model_or_prompt_is_refused(tiny, tiny_image, kept):
    _, path = kept
    with pytest.raises(ValueError, match=r"'clip.safetensors' was inverted with another model than 'tiny-image'"):
        load_trajectory(path, tiny_image, tiny_image.text.embed(TEXT))
    with pytest.raises(
        ValueError, match="made with the source prompt 'a red square', and 'a blue square' is connected"
    ):
        load_trajectory(path, tiny, tiny.text.embed("a blue square"))


def rewritten(path, tensors=None, **told):
    old, was = read_tensors(path)
    write_tensors(path, old if tensors is None else tensors, {**was, **told})
    return path


BROKEN = {
    "no schedule": {"weft_schedule": "[]"},
    "deep schedule": {"weft_schedule": "[" * 100_000},
    "schedule of no numbers": {"weft_schedule": json.dumps([[1, 2, 3], [1, 1, 1, float("nan")], [0] * 4, "epsilon"])},
    "schedule of texts": {"weft_schedule": json.dumps([["a", "b", "c"], "dddd", "eeee", "epsilon"])},
    "other length": {"weft_schedule": json.dumps([[1, 2], [1, 0.9, 0.8], [0, 0.1, 0.2], "epsilon"])},
    "no latents": {"tensors": {}},
    "latents of no numbers": {"tensors": {"latents": torch.full((4, 8, 4, 4, 6), float("nan"))}},
    "other channels": {"tensors": {"latents": torch.zeros(4, 8, 5, 4, 6)}},
    "five axes too few": {"tensors": {"latents": torch.zeros(4)}},
    "whole numbers": {"tensors": {"latents": torch.zeros(4, 8, 5, 4, dtype=torch.int64)}},
    "another kind": {"weft_trajectory": "noised"},
    "unknown kind": {"weft_trajectory": "other"},
}


@pytest.mark.parametrize("change", BROKEN.values(), ids=BROKEN)
def test_what_is_no_whole_trajectory_is_refused_in_words(tiny, kept, change):
    path = rewritten(kept[1], **change)
    with pytest.raises(ValueError, match=r"clip\.safetensors|wants latents"):
        load_trajectory(path, tiny, tiny.text.embed(TEXT))


def test_other_files_are_refused(tiny, tmp_path):
    path = tmp_path / "x.safetensors"
    with pytest.raises(ValueError, match="no trajectory 'x"):
        load_trajectory(path, tiny, tiny.text.embed(TEXT))
    write_tensors(path, {"latents": torch.zeros(1)}, {})
    with pytest.raises(ValueError, match=r"'x\.safetensors' is not a trajectory of Weft"):
        load_trajectory(path, tiny, tiny.text.embed(TEXT))


def test_what_stands_beside_the_picture_comes_back_and_is_refused_where_it_has_no_place(tiny, tmp_path):
    prompt, audio = tiny.text.embed(TEXT), torch.rand(1, 8, 7, 16)
    trajectory = replace(add_noise(tiny, make_latents(), prompt, steps=3), beside=audio)
    path, _ = save_trajectory(trajectory, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="audio beside its picture, which 'tiny' cannot take"):
        load_trajectory(path, tiny, prompt)

    class Hearing(type(tiny.codec)):
        def apart(self, latents): ...

    hearing = copy(tiny.codec)
    hearing.__class__ = Hearing
    assert torch.equal(load_trajectory(path, replace(tiny, codec=hearing), prompt).beside, audio)


def test_audio_is_refused_by_a_model_of_pictures(tiny):
    class Packed:
        is_nested = True

    with pytest.raises(ValueError, match="edits pictures alone, and these latents hold audio too"):
        invert(tiny, Packed(), tiny.text.embed(TEXT), steps=2)
