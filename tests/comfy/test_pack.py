import json

import pytest

from weft.headless.client import Refused

pytestmark = [pytest.mark.comfy, pytest.mark.each_comfyui]

NODES = {  # saved in workflows: none may ever go or be renamed
    "WeftAddNoise",
    "WeftChunkMerge",
    "WeftChunkPlan",
    "WeftChunkSelect",
    "WeftChunkStamp",
    "WeftCompareVideos",
    "WeftCorrespondence",
    "WeftCorrespondenceAttention",
    "WeftCoupledEdit",
    "WeftDDIMInversion",
    "WeftDecodeFrames",
    "WeftEditCandidates",
    "WeftEditSampler",
    "WeftEncodeFrames",
    "WeftEncodePrompt",
    "WeftEvaluateEdit",
    "WeftFateZero",
    "WeftFeatureInjection",
    "WeftFromComfyModel",
    "WeftGatherSwapAttention",
    "WeftLatentBlend",
    "WeftLoadAdapter",
    "WeftLoadAnimateDiff",
    "WeftLoadCLIP",
    "WeftLoadModel",
    "WeftLoadParts",
    "WeftLoadPrompt",
    "WeftLoadSAM",
    "WeftLoadTrajectory",
    "WeftPrepareClip",
    "WeftPreviewCorrespondence",
    "WeftPreviewSTRScore",
    "WeftPreviewWords",
    "WeftRegion",
    "WeftRestoreClip",
    "WeftSAMMask",
    "WeftSTEMAttention",
    "WeftSTEMInversion",
    "WeftSTRLatentOptimizer",
    "WeftSavePart",
    "WeftSaveTrajectory",
    "WeftSpatioTemporalAttention",
    "WeftTestTimeAdaptation",
    "WeftTextToBoxes",
    "WeftTokenFlow",
    "WeftTrackMask",
}


@pytest.fixture(scope="module")
def ours(server):
    """{node id: what ComfyUI says of it}."""
    return {k: v for k, v in json.loads(server.request("/object_info")).items() if k.startswith("Weft")}


def test_every_node_is_there(ours):
    assert set(ours) == NODES


def test_every_node_and_input_is_explained(ours):
    dumb = [name for name, info in ours.items() if not info["description"] or not info["category"].startswith("Weft/")]
    for name, info in ours.items():
        for group in ("required", "optional"):
            inputs = info["input"].get(group, {})
            dumb += [f"{name}.{field}" for field, (_, details) in inputs.items() if not details.get("tooltip")]
    assert not dumb


def test_models_are_found_in_both_places(ours):
    _, details = ours["WeftLoadModel"]["input"]["required"]["model"]
    assert {"toyworld/video", "tiny", "twin"} <= set(details["options"])
    _, details = ours["WeftLoadAnimateDiff"]["input"]["required"]["motion_module"]
    assert "toyworld/motion" in details["options"]


@pytest.mark.parametrize("name", sorted(NODES))
def test_help_pages_are_served(server, name):
    try:
        assert server.request(f"/extensions/weft/docs/{name}.md").strip()
    except Refused as error:
        pytest.fail(f"no help page for {name}: {error}")
