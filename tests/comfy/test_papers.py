"""The workflows with the papers' own models run, each with a tiny random model of the real class, in the folders and
under the names that the real one has; without it they say what to get."""

import shutil

import pytest
import torch

from weft.backbones.known_models import KNOWN
from weft.headless.client import WorkflowError, run_workflow
from weft.headless.graph import read_graph
from weft.headless.server import comfyui_server
from weft.tests.checkpoints import adapter_of, make_checkpoint, released
from weft.tests.conftest import ROOT
from weft.tests.tiny import make_cogvideox_folder, make_folder, make_lavie_folder
from weft.toyworld import clip
from weft.workflows.build.papers import NAMES

pytestmark = pytest.mark.comfy
STEPS = {"WeftDDIMInversion.steps": 2, "WeftSTEMInversion.steps": 2}
SMALL = {  # instead of the sizes and numbers that the real models want
    "str_match_lavie": {**STEPS, "Clip.length": 3, "Size.width": 32, "Size.height": 16},
    "str_match_zeroscope": {**STEPS, "Clip.length": 3, "Size.width": 32, "Size.height": 16},
    "str_match_animatediff": {**STEPS, "Clip.length": 3, "Size.width": 64, "Size.height": 64},
    "str_match_cogvideox": {**STEPS, "Clip.length": 9, "Size.width": 96, "Size.height": 64},
    "cove_sd": {"Invert.steps": 4, "Invert.edit_steps": 2, "Size.width": 32, "Size.height": 32},
    "stem_tokenflow_sd": {**STEPS, "Invert.bases": 16, "Size.width": 32, "Size.height": 32},
    "via_instructpix2pix": {"Noise.steps": 2, "Adapt.steps": 2, "Size.width": 32, "Size.height": 32},
}


@pytest.fixture(scope="module")
def base(comfyui, tmp_path_factory):
    """The server's folder, with the models in it."""
    from transformers import CLIPTokenizer

    base = tmp_path_factory.mktemp("papers")
    models = base / "models"
    make_lavie_folder(models / "diffusers" / "lavie")
    make_folder(models / "diffusers" / "zeroscope_v2_576w")
    make_cogvideox_folder(models / "diffusers" / "CogVideoX-5b")
    make_folder(models / "diffusers" / "stable-diffusion-v1-5", kind="image")
    make_folder(models / "diffusers" / "instruct-pix2pix", kind="instruct")
    tokenizer = CLIPTokenizer.from_pretrained(comfyui / "comfy" / "sd1_tokenizer")
    make_checkpoint(models / "checkpoints" / "v1-5-pruned-emaonly.safetensors", tokenizer)
    (models / "animatediff_models").mkdir()
    torch.save(released(adapter_of("v3")), models / "animatediff_models" / "v3_sd15_mm.ckpt")
    return base


@pytest.fixture(scope="module")
def server(comfyui, base):
    with comfyui_server(comfyui, base, arguments=["--cpu"]) as running:
        yield running


def small(name):
    path = ROOT / "workflows" / "api" / f"{name}.json"
    kinds = {node["class_type"] for node in read_graph(path).values()}
    return path, {k: v for k, v in SMALL[name].items() if not k.startswith("Weft") or k.split(".")[0] in kinds}


@pytest.fixture(scope="module")
def longer(tmp_path_factory):
    """The shipped clip, there and back: 16 frames."""
    file, frames = tmp_path_factory.mktemp("clips") / "there_and_back.mp4", clip.read_video(clip.CLIP)
    clip.write_video(file, torch.cat([frames, frames.flip(0)]))
    return file


@pytest.mark.parametrize("name", NAMES)
def test_it_runs_with_a_tiny_model_of_its_class(server, longer, name):
    path, numbers = small(name)
    result = run_workflow(server.url, path, {**numbers, "Source video.file": longer.name}, [longer])
    assert any(file["filename"].endswith(".mp4") for file in result.files())


MISSING = {
    "str_match_lavie": "diffusers/lavie",
    "cove_sd": "diffusers/stable-diffusion-v1-5",
    "str_match_animatediff": "animatediff_models/v3_sd15_mm.ckpt",
}


@pytest.mark.parametrize("name", MISSING)
def test_without_its_model_it_says_what_to_get(server, base, name):
    path, numbers = small(name)
    there = base / "models" / MISSING[name]
    shutil.move(there, base / "away")
    try:
        with pytest.raises(WorkflowError) as failure:
            run_workflow(server.url, path, numbers, [clip.CLIP])
    finally:
        shutil.move(base / "away", there)
    known = KNOWN[there.name]
    assert f"no model '{there.name}': {known.title} wants {known.files}, in {known.place}" in str(failure.value)


def test_numbers_are_those_of_the_papers():
    def of(name, kind):
        (node,) = (
            n for n in read_graph(ROOT / "workflows" / "api" / f"{name}.json").values() if n["class_type"] == kind
        )
        return node["inputs"]

    for name in (n for n in NAMES if n.startswith("str_match")):
        optimizer, sampler = of(name, "WeftSTRLatentOptimizer"), of(name, "WeftEditSampler")
        assert (optimizer["strength"], optimizer["levels"], optimizer["neighbours"]) == (0.01, "all_but_finest", 1)
        assert sampler["cfg"] == (6.0 if "cogvideox" in name else 7.5)
        assert "negative" not in sampler  # the source's prompt
        assert of(name, "WeftDDIMInversion")["steps"] == 50
    assert of("cove_sd", "WeftDDIMInversion")["steps"] == 100
    assert of("cove_sd", "WeftDDIMInversion")["edit_steps"] == 50
    assert of("cove_sd", "WeftEditSampler")["cfg"] == 7.5
    inversion, flow = of("stem_tokenflow_sd", "WeftSTEMInversion"), of("stem_tokenflow_sd", "WeftTokenFlow")
    assert (inversion["bases"], inversion["steps"], flow["batch"]) == (256, 50, 8)
    assert (flow["feature_steps"], flow["attention_steps"]) == (40, 25)
    sampler = of("via_instructpix2pix", "WeftEditSampler")
    assert (sampler["cfg"], sampler["image_cfg"], of("via_instructpix2pix", "WeftAddNoise")["steps"]) == (7.5, 1.5, 10)
