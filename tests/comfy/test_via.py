"""VIA inside ComfyUI: instructions, gather-swap, parts of a clip, adapters."""

import json

import numpy as np
import pytest
from PIL import Image

from weft.headless.client import Interrupted, WorkflowError, main
from weft.tests.comfy.graphs import CLIP, node
from weft.tests.numerics import PICTURE_LEVELS

pytestmark = pytest.mark.comfy
SCALES = {"cfg": 2.0, "image_cfg": 1.5, "chunk_frames": 0}


def via(model="instruct", **gather):
    """Clip in, latents and pictures out. A node's id is what it does."""
    gather = {"group_size": 2, "layers": "self_and_cross", "adapt_steps": 0, "gpu_gb": 2.0, "budget_gb": 8.0, **gather}
    return {
        "video": node("LoadVideo", file=CLIP),
        "frames": node("GetVideoComponents", video=["video", 0]),
        "base": node("WeftLoadModel", model=model, dtype="float32"),
        "said": node("WeftEncodePrompt", model=["base", 0], text="make it blue"),
        "gather": node("WeftGatherSwapAttention", **gather),
        **edited(["base", 0], ["said", 0], ["frames", 0]),
        "latent": node("SaveLatent", samples=["sample", 0], filename_prefix="edit"),
        "pictures": node("PreviewImage", images=["decode", 0]),
    }


def edited(model, text, frames, name="", **chunk):
    """The nodes from frames to frames."""
    noise = {"steps": 2, "seed": 0, "noise": "per_frame", **chunk}
    gather = "gather" + name
    return {
        f"encode{name}": node("WeftEncodeFrames", model=model, images=frames),
        f"noise{name}": node("WeftAddNoise", model=model, latent=[f"encode{name}", 0], **noise),
        f"sample{name}": node(
            "WeftEditSampler",
            model=model,
            trajectory=[f"noise{name}", 0],
            positive=text,
            plan=[gather, 0],
            seed=0,
            **SCALES,
        ),
        f"decode{name}": node("WeftDecodeFrames", model=model, latent=[f"sample{name}", 0]),
    }


def adapted(save_as="", steps=3, **options):
    """The same with a model that is trained first; `said` stays with the first model."""
    graph = via(**options)
    told = {"model": ["base", 0], "instruction": ["said", 0]}
    counts = {"frame": 1, "count": 2, "choice": 1, "seed": 0, "steps": 2, "cfg": 2.0, "image_cfg": 1.5}
    training = {"steps": steps, "rate": 1e-3, "rank": 2, "drop": 0.05, "seed": 0, "save_as": save_as}
    graph["candidates"] = node("WeftEditCandidates", **told, images=["frames", 0], **counts)
    pair = {"source": ["candidates", 2], "edited": ["candidates", 1]}
    graph["adapt"] = node("WeftTestTimeAdaptation", **told, **pair, **training)
    return rewired(graph, ["adapt", 0])


def rewired(graph, model):
    """The graph with everything from the edit's prompt on by another model."""
    graph["said again"] = node("WeftEncodePrompt", model=model, text="make it blue")
    graph |= edited(model, ["said again", 0], ["frames", 0])
    return graph


def refused(editor, graph, *words):
    with pytest.raises(WorkflowError) as failure:
        editor(graph)
    missing = [word for word in words if word not in str(failure.value)]
    assert not missing, f"{missing} not in: {failure.value}"


def test_a_change_of_the_group_reruns_plan_and_sampler_alone(editor):
    first, second = editor(via(group_size=2)), editor(via(group_size=3))
    assert second.ran == {"gather", "sample", "latent", "decode", "pictures"}
    assert first.bits != second.bits


def test_parts_of_a_clip_give_the_clip(editor):
    """As several machines do it, one part after another."""
    graph = via()
    graph["chunks"] = node("WeftChunkPlan", images=["frames", 0], count=2, group_size=2)
    for i in ("0", "1"):
        graph["part" + i] = node("WeftChunkSelect", chunks=["chunks", 0], images=["frames", 0], index=int(i))
        chunk = {"chunk": ["part" + i, 2]}
        graph["gather" + i] = node("WeftGatherSwapAttention", **graph["gather"]["inputs"], **chunk)
        graph |= edited(["base", 0], ["said", 0], ["part" + i, 0], i, **chunk)
    graph["both"] = node("ImageBatch", image1=["decode1", 0], image2=["decode0", 0])
    graph["merge"] = node("WeftChunkMerge", chunks=["chunks", 0], images=["both", 0], order="1 0")
    want = editor(graph).pictures()
    graph["pictures"]["inputs"]["images"] = ["merge", 0]
    got = editor(graph).pictures()
    assert got.shape == want.shape
    assert np.abs(got.astype(int) - want).max() <= PICTURE_LEVELS


def test_parts_as_files_give_the_clip_and_one_can_be_run_again(editor, tmp_path):
    """As any scheduler does it: a job a part, and one that makes the clip of them."""
    graph = via()
    graph["chunks"] = node("WeftChunkPlan", images=["frames", 0], count=1, group_size=2)
    graph["part"] = node("WeftChunkSelect", chunks=["chunks", 0], images=["frames", 0], index=0)
    graph["gather"]["inputs"]["chunk"] = ["part", 2]
    graph |= edited(["base", 0], ["said", 0], ["part", 0], chunk=["part", 2])
    graph["merge"] = node("WeftChunkMerge", chunks=["chunks", 0], images=["decode", 0])
    graph["pictures"]["inputs"]["images"] = ["merge", 0]
    want, workflow = editor(graph).pictures(), tmp_path / "cat.json"
    workflow.write_text(json.dumps(graph))

    def client(*words):
        main([str(workflow), "--server", editor.server.url, *map(str, words)])

    client("--part", "0/2", "--out", tmp_path / "parts")
    with pytest.raises(SystemExit, match="no part 1 of 2"):
        client("--merge", 2)
    for _ in range(2):
        client("--part", "1/2", "--out", tmp_path / "parts")
    files = sorted((tmp_path / "parts").iterdir())
    assert [file.name for file in files] == [f"cat.part_{i}_of_2.safetensors" for i in range(2)]
    moved = [file.rename(file.with_name(f"moved_{file.name}")) for file in files]  # as if the server had none of them
    client("--merge", 2, "--name", "moved_cat", "--upload", *moved, "--out", tmp_path / "edit")
    pictures = sorted((tmp_path / "edit").glob("*.png"))
    got = np.stack([np.asarray(Image.open(file)) for file in pictures])
    assert got.shape == want.shape
    assert np.abs(got.astype(int) - want).max() <= PICTURE_LEVELS


def test_an_adapter_is_trained_saved_and_loaded_again(editor):
    trained = editor(adapted("blue"))
    assert trained.bits != editor(via()).bits
    assert len(trained.result.files("candidates")) == 2
    assert len(trained.result.files("adapt")) == 1  # the loss curve
    graph = via()
    graph["load"] = node("WeftLoadAdapter", model=["base", 0], adapter="blue.safetensors")
    assert editor(rewired(graph, ["load", 0])).bits == trained.bits


def test_a_cancelled_training_keeps_what_it_had_and_leaves_the_model_alone(editor):
    before = editor(via())

    def cancel(kind, data):
        if kind == "progress" and data["node"] == "adapt" and data["value"] >= 3:
            editor.server.interrupt()

    with pytest.raises(Interrupted, match="adapt"):
        editor(adapted("half", steps=5000), cancel)
    assert editor(via(adapt_steps=2)).bits == before.bits  # 2 of 2 steps: the same edit, made anew
    graph = via()
    graph["load"] = node("WeftLoadAdapter", model=["base", 0], adapter="half.safetensors")
    assert editor(rewired(graph, ["load", 0])).bits != before.bits


def test_a_choice_that_cannot_be_is_refused_before_the_candidates_are_made(editor):
    graph, worked = adapted(), []
    graph["candidates"]["inputs"]["choice"] = 2
    with pytest.raises(WorkflowError, match="there are candidates 0 to 1, and no 2"):
        editor(graph, lambda kind, data: worked.append(data["node"]) if kind == "progress" else None)
    assert "candidates" not in worked


def test_a_prompt_of_the_model_it_came_from_serves_the_adapted_one(editor):
    graph, again = adapted(), adapted()
    graph["said again"]["inputs"]["model"] = ["base", 0]
    assert editor(graph).bits == editor(again).bits


def test_what_does_not_fit_is_said(editor):
    refused(editor, via(group_size=5), "WeftEditSampler", "want a group of 1 to 4 frames", "got 5")
    refused(editor, via(budget_gb=0.0), "keys and values of the group take", "use a smaller group")
    refused(editor, via(model="tiny"), "looks at all frames together")
    refused(editor, adapted("../../evil"), "want a plain file name")
    editor(adapted("ours"))
    graph = via("instruct-twin")
    graph["load"] = node("WeftLoadAdapter", model=["base", 0], adapter="ours.safetensors")
    refused(editor, rewired(graph, ["load", 0]), "WeftLoadAdapter", "trained on another model than 'instruct-twin'")
    assert editor(via()).pictures().std() > 1
