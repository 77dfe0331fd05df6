"""Edit Candidates inside ComfyUI, chosen by hand and by CLIP, on the clip that ships."""

import io
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load, save

from weft.headless.client import WorkflowError
from weft.tests.comfy.graphs import GONE, node, untold
from weft.toyworld import clip
from weft.toyworld.measure import measure

pytestmark = pytest.mark.comfy
COUNT, SEED = 6, 40  # in 3 steps, the second and the last are no red circle
BEFORE, AFTER = clip.captions()


@pytest.fixture
def run(server):
    server.upload(clip.CLIP)
    return lambda graph: server.run(graph, patience=120)


def candidates(**inputs):
    """Clip in, candidates and what becomes of them out."""
    told = {"model": ["base", 0], "images": ["frames", 0], "instruction": ["said", 0]}
    numbers = {"frame": 0, "count": COUNT, "choice": 2, "seed": SEED, "steps": 3, "cfg": 7.5, "image_cfg": 1.5}
    return {
        "video": node("LoadVideo", file=clip.CLIP.name),
        "frames": node("GetVideoComponents", video=["video", 0]),
        "base": node("WeftLoadModel", model="toyworld/instruct", dtype="float32"),
        "said": node("WeftEncodePrompt", model=["base", 0], text=clip.instruction()),
        "candidates": node("WeftEditCandidates", **(told | numbers | inputs)),
        "edited": node("PreviewImage", images=["candidates", 1]),
        "seed": node("PreviewAny", source=["candidates", 3]),
        "scores": node("PreviewAny", source=["candidates", 4]),
    }


def judged(model="toyworld/clip", before=BEFORE, after=AFTER, **inputs):
    graph = candidates(clip=["clip", 0], before=before, after=after, **inputs)
    graph["clip"] = node("WeftLoadCLIP", model=model)
    return graph


def pictures(result, name):
    """[n, H, W, 3] in 0..1, as the node shows them."""
    files = [Image.open(io.BytesIO(result.fetch(file))).convert("RGB") for file in result.files(name)]
    return torch.from_numpy(np.stack([np.asarray(file) for file in files])) / 255


def read(result):
    """(scores, index of the one taken) as the node tells them."""
    (text,) = result.outputs["scores"]["text"]
    scores = [float(score) for score in re.findall(r"^candidate \d+: (-?\d\.\d+)", text, re.MULTILINE)]
    (taken,) = re.findall(r"^candidate (\d+): .*, taken$", text, re.MULTILINE)
    return scores, int(taken)


def test_the_best_is_taken_whatever_the_choice(run):
    result = run(judged(choice=63))  # there is no such one
    scores, taken = read(result)
    shown = pictures(result, "candidates")
    assert len(scores) == len(shown) == COUNT
    assert len(set(scores)) > 1
    assert taken == scores.index(max(scores))
    assert torch.equal(pictures(result, "edited")[0], shown[taken])
    assert result.outputs["seed"]["text"] == [str(SEED + taken)]
    source, target = (replace(c, center=c.center[:, :1]) for c in (clip.source_clip(), clip.edited_clip()))
    right = [measure(picture.movedim(-1, 0)[None, None], source, target)["target_accuracy"] for picture in shown]
    assert right[taken] == 1
    assert right[scores.index(min(scores))] == 0


def test_the_way_back_takes_the_worst(run):
    scores, taken = read(run(judged()))
    turned, other = read(run(judged(before=AFTER, after=BEFORE)))
    assert turned == pytest.approx([-s for s in scores], abs=2e-3)
    assert other == scores.index(min(scores)) != taken


def test_without_clip_the_choice_counts(run):
    result = run(candidates(before="", after="never read"))
    assert result.outputs["scores"]["text"] == [""]
    assert torch.equal(pictures(result, "edited")[0], pictures(result, "candidates")[2])
    assert result.outputs["seed"]["text"] == [str(SEED + 2)]


def test_whole_clips_are_found_where_text_encoders_are(run, server):
    info = json.loads(server.request("/object_info/WeftLoadCLIP"))["WeftLoadCLIP"]
    options = info["input"]["required"]["model"][1]["options"]
    assert sorted(options) == ["half", "mine/whole", "toyworld/clip"]  # and no text encoder alone
    assert read(run(judged(model="mine/whole"))) == read(run(judged()))


def test_replaced_weights_are_loaded_anew(run, server):
    argv = json.loads(server.request("/system_stats"))["system"]["argv"]
    base = Path(argv[argv.index("--base-directory") + 1])
    weights = base / "models" / "text_encoders" / "mine" / "whole" / "model.safetensors"
    kept, graph = weights.read_bytes(), judged(model="mine/whole")
    first = read(run(graph))
    assert "clip" in run(graph).cached
    tensors = load(kept)
    tensors["visual_projection.weight"] = tensors["visual_projection.weight"].flip(0)
    replaced(weights, save(tensors, {"format": "pt"}))  # its config.json is as before
    try:
        again = run(graph)
        assert "clip" not in again.cached
        assert read(again) != first
    finally:
        replaced(weights, kept)


def replaced(path, content):
    """A new file under the old name, as a download makes it: the old one may still be mapped into memory."""
    path.with_suffix(".new").write_bytes(content)
    path.with_suffix(".new").replace(path)


@pytest.mark.parametrize(
    ("graph", "words"),
    [
        (judged(model="gone"), ["WeftLoadCLIP (node clip)", GONE, "toyworld/clip"]),
        (judged(model="half"), ["WeftLoadCLIP (node clip)", "half/model.safetensors' is not a whole safetensors file"]),
        (judged(before=" "), ["WeftEditCandidates (node candidates)", "'before' is empty", "as it is"]),
        (judged(after=""), ["'after' is empty", "as it should be"]),
        (judged(after=BEFORE.upper()), ["to 'toyworld/clip'", "say the same"]),
        (candidates(choice=COUNT), ["there are candidates 0 to 5, and no 6"]),
    ],
    ids=lambda value: value[-1][:30] if isinstance(value, list) else "",
)
def test_what_is_wrong_is_said(run, graph, words):
    with pytest.raises(WorkflowError) as failure:
        run(graph)
    assert not untold(failure, words)
