"""The toy motion adapter: it begins as the image model, is trained alone, and loads as AnimateDiff's do."""

from dataclasses import replace

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file

from weft.backbones.diffusers.motion import load_animatediff
from weft.backbones.memory import PlainMemory
from weft.engine.edit import edit
from weft.engine.inversion import invert
from weft.engine.plan import PLAIN
from weft.methods.coupled_flow import CoupledFlow, coupled_edit
from weft.methods.str_match import STRLatentOptimizer
from weft.tests.conftest import ROOT
from weft.toyworld import motion_model, sample, scenes, train, training
from weft.toyworld.training import SCHEDULER, Recipe

SHIPPED = ROOT / "toyworld" / "weights"
RECIPE = Recipe(steps=2, peak_rate=1e-3, warmup=1, ema=0)


def image_unet():
    return UNet2DConditionModel.from_pretrained(SHIPPED / "epsilon" / "unet", torch_dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of weights after two steps of each run, on a few scenes."""
    out, runs, draw = tmp_path_factory.mktemp("weights"), tmp_path_factory.mktemp("runs"), scenes.draw
    for name in ("epsilon", "crisp"):
        (out / name).symlink_to(SHIPPED / name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(motion_model, "BATCH", 1)
        patch.setattr(scenes, "draw", lambda n, *a, **k: draw(min(n, 4), *a, **k))
        for run in ("motion", "paths"):
            train.MODELS[run](RECIPE, runs, out, clips=4)
    return out


@pytest.fixture(scope="module")
def backbone(trained):
    return load_animatediff(trained / "epsilon", trained / "motion", dtype="float32", memory=PlainMemory("cpu"))


@pytest.fixture(scope="module")
def clip(backbone):
    source = scenes.draw(1, torch.Generator().manual_seed(0), (2,), frames=4)
    frames = scenes.render(source)[0][0].movedim(1, -1)
    return backbone.codec.encode(frames), scenes.captions(source)[0]


def test_it_begins_as_the_image_model_on_each_frame():
    torch.manual_seed(0)
    unet = image_unet()
    network = motion_model.make_network(unet, motion_model.make_adapter()).eval()
    x, t, texts = torch.randn(2, 4, 3, 16, 16), torch.tensor([10, 700]), torch.randn(2, 16, 64)
    with torch.no_grad():
        frames = [unet(x[:, :, f], t, texts).sample for f in range(3)]
        got = network(x, t, motion_model.per_frame(texts, 3)).sample
    torch.testing.assert_close(got, torch.stack(frames, 2), atol=1e-4, rtol=1e-4)


def test_only_motion_modules_are_trained_and_the_folder_is_small(trained):
    network = sample.load_motion(trained / "motion").unet
    assert all(("motion_modules" in name) == p.requires_grad for name, p in network.named_parameters())
    tensors = network.state_dict()
    assert all(torch.equal(tensors[name], value) for name, value in image_unet().state_dict().items())
    last = [v for name, v in tensors.items() if "motion_modules" in name and name.endswith("proj_out.weight")]
    assert last
    assert all(v.any() for v in last)  # they were zero
    file = trained / "motion" / "diffusion_pytorch_model.safetensors"
    assert file.stat().st_size < 2**20


def test_the_shipped_one_is_small_and_in_half_precision():
    tensors = load_file(SHIPPED / "motion" / "diffusion_pytorch_model.safetensors")
    assert sum(t.nbytes for t in tensors.values()) < 3 * 2**20
    assert {t.dtype for t in tensors.values()} == {torch.float16}


def test_it_loads_as_animatediff_with_the_image_models_noise_levels(backbone):
    schedule = backbone.denoiser.schedule(50)
    betas = torch.linspace(SCHEDULER["beta_start"] ** 0.5, SCHEDULER["beta_end"] ** 0.5, 1000, dtype=torch.float64) ** 2
    assert schedule.signal[-1] ** 2 == pytest.approx(torch.cumprod(1 - betas, 0)[981].item(), rel=1e-4)
    assert {s.kind for s in backbone.denoiser.sites} == {"spatial", "cross", "temporal"}


def test_methods_of_video_models_run_on_it(backbone, clip):
    latents, caption = clip
    source, target = (backbone.text.embed(t) for t in (caption, "a red square on a gray plain background"))
    trajectory = invert(backbone, latents, source, steps=2)
    plain, str_match = (
        edit(backbone, trajectory, target, plan=plan, guidance=2.0)
        for plan in (PLAIN, PLAIN.then(STRLatentOptimizer(strength=0.5)))
    )
    coupled = coupled_edit(backbone, latents, source, target, solver=CoupledFlow(start=1.0), steps=2)
    assert all(made.isfinite().all() for made in (plain, str_match, coupled))
    assert not torch.equal(plain, str_match)
    assert not torch.equal(coupled, latents)


def test_clips_can_be_sampled_and_a_frame_hears_of_the_others(trained):
    captions = ["a red square on a teal striped background", "a gray plain background"]
    pipeline = sample.load_motion(trained / "motion")
    video = sample.sample(pipeline, captions, steps=2, frames=3)
    assert video.shape == (2, 3, 3, 64, 64)
    x, texts = torch.randn(1, 4, 3, 16, 16, generator=torch.Generator().manual_seed(0)), torch.zeros(1, 16, 64)
    other = x.clone()
    other[:, :, 2] = 0
    with torch.no_grad():
        one, two = (pipeline.unet(z, 500, motion_model.per_frame(texts, 3)).sample[:, :, 0] for z in (x, other))
    assert not torch.equal(one, two)


def test_what_is_not_there_says_how_to_make_it(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no model in .*train it with .*weft.toyworld.train motion"):
        sample.load_motion(tmp_path / "motion")


def test_a_stopped_run_ends_where_an_unbroken_one_does(trained, tmp_path, monkeypatch):
    class Stopped(Exception):
        pass

    def stops(*arguments):
        left.pop()
        if not left:
            raise Stopped
        return noised(*arguments)

    def run(label):
        train.MODELS["motion"](replace(RECIPE, steps=4, ema=0.9), tmp_path / label, trained, clips=4)
        return torch.load(tmp_path / label / "motion.pt", weights_only=True)

    draw, noised, left = scenes.draw, motion_model.add_noise, [*range(4)]  # it stops in its fourth step
    monkeypatch.setattr(scenes, "draw", lambda n, *a, **k: draw(min(n, 4), *a, **k))
    monkeypatch.setattr(motion_model, "BATCH", 1)
    monkeypatch.setattr(motion_model, "save_adapter", lambda *_: None)
    monkeypatch.setattr(training, "CHECKPOINT_EVERY", 2)
    unbroken = run("unbroken")
    monkeypatch.setattr(motion_model, "add_noise", stops)
    with pytest.raises(Stopped):
        run("stopped")
    monkeypatch.setattr(motion_model, "add_noise", noised)
    resumed = run("stopped")
    assert all(torch.equal(a, b) for a, b in zip(unbroken["average"], resumed["average"], strict=True))
