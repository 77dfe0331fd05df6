"""The clip that ships is the one that the constants draw, and its files say the same."""

import json

import pytest
import torch

from weft.tests.conftest import ROOT
from weft.toyworld import clip, world
from weft.toyworld.measure import measure, psnr

COMPRESSION_DB = 40.0  # colors are stored at the full resolution


def channels_first(frames):
    return frames.movedim(-1, 1)[None]


def test_the_shipped_clip_is_up_to_date():
    shipped, drawn = (channels_first(f) for f in (clip.read_video(clip.CLIP), clip.frames_of(clip.source_clip())))
    assert shipped.shape == drawn.shape
    assert psnr(shipped, drawn).item() > COMPRESSION_DB


def test_the_edit_keeps_to_the_mask():
    source, truth = (clip.frames_of(clips) for clips in (clip.source_clip(), clip.edited_clip()))
    assert torch.equal((source - truth).abs().sum(-1) * (1 - clip.edit_mask()), torch.zeros(clip.edit_mask().shape))


def test_the_edit_changes_what_it_names():
    source, edited = clip.source_clip(), clip.edited_clip()
    changed = {name for name in world.CHOICES if getattr(source, name) != getattr(edited, name)}
    assert changed == set(clip.EDIT)
    done_nothing = measure(channels_first(clip.frames_of(source)), source, edited)
    assert done_nothing["target_accuracy"].item() == 0


def test_video_files_keep_frames(tmp_path):
    frames = torch.full((3, 16, 24, 3), 0.5)
    frames[1] = 0.25
    clip.write_video(tmp_path / "new" / "gray.mp4", frames)
    assert torch.allclose(clip.read_video(tmp_path / "new" / "gray.mp4"), frames, atol=2 / 255)


THING, GROUND = clip.captions()[0].split(" on ")
BEYOND = {
    "two_edits": {f"{thing} on a teal checkered background" for thing in (THING, clip.captions()[1].split(" on ")[0])},
    "remove_object": {GROUND},
    "add_object": {f"{THING} and a white circle on {GROUND}"},
}


@pytest.mark.parametrize("path", sorted((ROOT / "workflows" / "api").glob("*.json")), ids=lambda path: path.stem)
def test_workflows_ask_for_this_edit(path):
    nodes = json.loads(path.read_text()).values()
    prompts = {n["inputs"]["text"] for n in nodes if n["class_type"] == "WeftEncodePrompt"}
    asked = prompts - {""}  # an empty one is the negative prompt, and masks alone need none
    everywhere = {"make the background teal striped"}  # VIA's global edit changes more than the sprite
    source = clip.captions()[0]
    if path.stem in BEYOND:  # these change other things than the sprite's looks
        assert source in asked
        assert asked - {source} <= BEYOND[path.stem]
        return
    assert asked in (set(clip.captions()), {clip.instruction()}, everywhere, set())
    assert all(n["inputs"]["text"] in source for n in nodes if n["class_type"] == "WeftTextToBoxes")


@pytest.mark.parametrize("path", sorted((ROOT / "workflows" / "api").glob("*.json")), ids=lambda path: path.stem)
def test_clicks_are_on_the_sprite(path):
    for node in json.loads(path.read_text()).values():
        if node["class_type"] == "WeftSAMMask" and node["inputs"]["positive"]:
            x, y = map(int, node["inputs"]["positive"].split(","))
            assert world.sprite_alpha(clip.source_clip())[0, 0, y, x] == 1
