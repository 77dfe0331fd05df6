"""Click, text and track inside ComfyUI, each stage by itself and in a row, on the clip that ships."""

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

from weft.headless.client import Interrupted, WorkflowError
from weft.tests.comfy.graphs import GONE, node, untold
from weft.toyworld import clip, world
from weft.toyworld.sam import iou

pytestmark = [pytest.mark.comfy, pytest.mark.each_comfyui]


@pytest.fixture(scope="module")
def truth():
    return world.sprite_alpha(clip.source_clip())[0] > 0.5


@pytest.fixture
def run(server):
    server.upload(clip.CLIP)
    return lambda graph, listen=lambda kind, data: None: server.run(graph, listen, 120)


def click(model="toyworld/sam", **inputs):
    """Clip in, a mask at the first frame, the clip's masks as pictures out."""
    x, y = clip.source_clip().center[0, 0].round().int().tolist()
    return {
        "video": node("LoadVideo", file=clip.CLIP.name),
        "frames": node("GetVideoComponents", video=["video", 0]),
        "sam": node("WeftLoadSAM", model=model, dtype="auto"),
        "mask": node("WeftSAMMask", **({"sam": ["sam", 0], "images": ["frames", 0], "positive": f"{x},{y}"} | inputs)),
        "track": node("WeftTrackMask", sam=["sam", 0], images=["frames", 0], mask=["mask", 0], frames=["mask", 1]),
        "pictures": node("MaskToImage", mask=["track", 0]),
        "shown": node("PreviewImage", images=["pictures", 0]),
        "told": node("PreviewAny", source=["track", 1]),
    }


def by_text(text, **inputs):
    graph = click(positive="", boxes=["boxes", 0])
    graph["boxes"] = node("WeftTextToBoxes", model="toyworld/detector", images=["frames", 0], text=text, **inputs)
    return graph


def masks(result):
    pictures = [Image.open(io.BytesIO(result.fetch(file))).convert("L") for file in result.files("shown")]
    return torch.from_numpy(np.stack([np.asarray(p) for p in pictures])) > 127


def test_a_click_becomes_the_mask_of_the_clip(run, truth):
    result = run(click())
    assert iou(masks(result), truth).mean() > 0.8
    told = json.loads(result.outputs["told"]["text"][0])
    assert (told["given"], told["lost"], len(told["confidence"])) == ([0], [], len(truth))
    assert len(result.outputs["mask"]["images"]) == 1  # the node shows what was clicked


def test_a_text_does_too(run, truth):
    color_and_shape = " ".join(clip.captions()[0].split()[:3])
    assert iou(masks(run(by_text(color_and_shape))), truth).mean() > 0.8


def test_a_mask_of_any_node_can_be_tracked(run, truth):
    graph = click()
    left, top = (clip.source_clip().center[0, 0] - 8).round().int().tolist()
    graph["square"] = node("SolidMask", value=1.0, width=16, height=16)
    graph["nothing"] = node("SolidMask", value=0.0, width=world.SIZE, height=world.SIZE)
    graph["mask"] = node(
        "MaskComposite", destination=["nothing", 0], source=["square", 0], x=left, y=top, operation="add"
    )
    graph["track"]["inputs"] |= {"mask": ["mask", 0], "frames": "0"}
    assert iou(masks(run(graph))[1:], truth[1:]).mean() > 0.7


def test_masks_go_into_any_node(run, truth):
    graph = click()
    graph["grown"] = node("GrowMask", mask=["track", 0], expand=3, tapered_corners=False)
    graph["pictures"]["inputs"]["mask"] = ["grown", 0]
    grown = masks(run(graph))
    assert grown.shape == truth.shape
    assert grown.sum() > 1.2 * truth.sum()


def test_checkpoints_are_found_by_extra_model_paths(run, server, truth):
    info = json.loads(server.request("/object_info/WeftLoadSAM"))["WeftLoadSAM"]
    options = info["input"]["required"]["model"][1]["options"]
    assert {"toyworld/sam", "copy.pth", "half.safetensors"} <= set(options)
    assert iou(masks(run(click(model="copy.pth"))), truth).mean() > 0.8


@pytest.mark.parametrize(
    ("graph", "words"),
    [
        (click(model="gone"), ["WeftLoadSAM (node sam)", GONE, "toyworld/sam"]),
        (click(model="half.safetensors"), ["half.safetensors' is not a whole safetensors file"]),
        (click(positive=""), ["WeftSAMMask (node mask)", "no point and no box"]),
        (click(positive="64,3"), ["the point 64,3 at frame 0 is outside the picture, which is 64x64"]),
        (click(positive="8: 3,3"), ["there is no frame 8: the clip has 8"]),
        (click(positive="", boxes="0,0,65,9"), ["the box 0,0,65,9 at frame 0 is not inside the picture"]),
        (by_text("a square", threshold=1.0), ["WeftTextToBoxes (node boxes)", "finds no 'a square'", "lower it"]),
        (by_text("a square", frames="9"), ["there is no frame 9"]),
        (by_text(""), ["no text"]),
    ],
    ids=lambda value: value[-1][:30] if isinstance(value, list) else "",
)
def test_what_is_wrong_is_said(run, graph, words):
    with pytest.raises(WorkflowError) as failure:
        run(graph)
    assert not untold(failure, words)


def test_an_empty_mask_is_not_tracked(run):
    graph = click()
    graph["mask"] = node("SolidMask", value=0.0, width=world.SIZE, height=world.SIZE)
    graph["track"]["inputs"] |= {"mask": ["mask", 0], "frames": "0"}
    with pytest.raises(WorkflowError, match="the mask of frame 0 is empty"):
        run(graph)


def test_cancel_stops_the_track_and_leaves_nothing(run, server, truth):
    graph = click()
    graph["long"] = node("RepeatImageBatch", image=["frames", 0], amount=60)
    graph["track"]["inputs"]["images"] = ["long", 0]
    seen = []

    def cancel(kind, data):
        if kind == "progress" and data["node"] == "track":
            seen.append(data["value"])
            if len(seen) == 3:
                server.interrupt()

    with pytest.raises(Interrupted, match="track"):
        run(graph, cancel)
    assert max(seen) < 400
    assert iou(masks(run(click())), truth).mean() > 0.8


def test_each_mask_node_runs_alone(run):
    """Nothing need be connected to what shows a picture itself."""
    alone = {name: part for name, part in click().items() if name not in ("pictures", "shown")}
    frames = ["frames", 0]
    alone["boxes"] = node("WeftTextToBoxes", model="toyworld/detector", images=frames, text="a square", threshold=0.0)
    result = run(alone)
    assert all(result.files(name) for name in ("mask", "track", "boxes"))
