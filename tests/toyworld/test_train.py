"""The trainer in miniature: what it writes loads, and a stopped run ends where an unbroken one does."""

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from weft.toyworld import (
    flow_model,
    flow_vae,
    image_model,
    instruct_model,
    losses,
    models,
    motion_model,
    sample,
    scenes,
    train,
    training,
    video_model,
    world,
)
from weft.toyworld.training import Recipe
from weft.toyworld.vae import whiten

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
RECIPE = Recipe(steps=3, peak_rate=1e-3, warmup=1)
CLIPS = 8
MEGABYTE = 2**20


@pytest.fixture(scope="module", autouse=True)
def small():
    """Small batches, and clips drawn by the dozen, for speed; what is computed stays the same."""
    draw, draw_scenes = world.draw, scenes.draw
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(image_model, "BATCH", dict.fromkeys(image_model.BATCH, 4))
        patch.setattr(video_model, "BATCH", dict.fromkeys(video_model.BATCH, 4))
        patch.setattr(instruct_model, "BATCH", 4)
        patch.setattr(motion_model, "BATCH", 2)
        patch.setattr(flow_vae, "BATCH", 2)
        patch.setattr(flow_vae, "POOL", 8)
        patch.setattr(flow_model, "BATCH", 2)
        patch.setattr(world, "draw", lambda n, *a, **k: draw(min(n, 12), *a, **k))
        patch.setattr(scenes, "draw", lambda n, *a, **k: draw_scenes(min(n, 12), *a, **k))
        yield


@pytest.fixture(scope="module")
def folders(small, tmp_path_factory):
    """(runs, out) after a few steps of each model, in the order of the module's page."""
    runs, out = tmp_path_factory.mktemp("runs"), tmp_path_factory.mktemp("weights")
    for name, model in train.MODELS.items():
        model(replace(RECIPE, device=DEVICE), runs, out, **({} if name in train.DRAW_AS_THEY_GO else {"clips": CLIPS}))
    return runs, out


@pytest.mark.parametrize(
    ("name", "family", "channels"),
    [
        ("epsilon", "StableDiffusionPipeline", 4),
        ("image", "StableDiffusionPipeline", 4),
        ("video", "TextToVideoSDPipeline", 4),
        ("things", "TextToVideoSDPipeline", 4),
        ("instruct", "StableDiffusionInstructPix2PixPipeline", 8),
    ],
)
def test_a_trained_model_is_a_small_diffusers_folder(folders, name, family, channels):
    folder = folders[1] / name
    assert sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) < 12 * MEGABYTE
    pipeline = sample.load(folder)
    assert type(pipeline).__name__ == family
    assert type(pipeline.scheduler).__name__ == "DDIMScheduler"
    assert pipeline.scheduler.config.prediction_type == ("epsilon" if name == "epsilon" else "v_prediction")
    assert pipeline.unet.config.in_channels == channels
    assert pipeline.unet.dtype == torch.float32
    for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
        assert all(p.isfinite().all() for p in part.parameters())


@pytest.mark.parametrize(("folder", "run"), [("video", "shapes"), ("things", "things"), ("epsilon", "epsilon")])
def test_the_folder_holds_the_averaged_weights_of_its_last_run(folders, folder, run):
    runs, out = folders
    average = torch.load(runs / f"{run}.pt", weights_only=True)["average"]
    pipeline = sample.load(out / folder)
    saved = [*pipeline.unet.parameters(), *pipeline.text_encoder.parameters()]
    for tensor, shadow in zip(saved, average, strict=True):
        assert torch.equal(tensor, shadow.half().float())


def test_shipped_configs_do_not_say_where_they_were_made(folders):
    for file in folders[1].glob("*/*/config.json"):
        assert "_name_or_path" not in json.loads(file.read_text())


@pytest.mark.parametrize(("name", "frames"), [("video", 5), ("things", 5), ("image", 1), ("epsilon", 1)])
def test_clips_can_be_sampled_from_the_folder(folders, name, frames):
    pipeline = sample.load(folders[1] / name)
    captions = ["a red square on a teal striped background", "a blue cross on a gray plain background"]
    video = sample.sample(pipeline, captions, steps=2, frames=frames)
    assert video.shape == (2, frames, 3, world.SIZE, world.SIZE)
    assert 0 <= video.min() < video.max() <= 1
    assert torch.equal(video, sample.sample(pipeline, captions, steps=2, frames=frames))
    assert not torch.equal(video, sample.sample(pipeline, captions, steps=2, frames=frames, seed=1))
    assert not torch.equal(video, sample.sample(pipeline, captions[::-1], steps=2, frames=frames))


def test_the_sampling_command_prints_a_table_and_writes_a_sheet(folders, tmp_path, monkeypatch, capsys):
    sheet = tmp_path / "sheet.png"
    arguments = ["--weights", str(folders[1] / "image"), "--n", "3", "--batch", "2", "--steps", "1"]
    monkeypatch.setattr("sys.argv", ["sample.py", *arguments, "--device", "cpu", "--sheet", str(sheet)])
    sample.main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].startswith("| color_accuracy |")
    assert all(0 <= float(line.split("|")[2]) <= 1 for line in lines[2:8])
    assert "`python -m weft.toyworld.sample --weights" in "\n".join(lines)
    assert sheet.stat().st_size > 0


def test_scenes_are_sampled_and_judged_as_scenes(folders, tmp_path, monkeypatch, capsys):
    arguments = ["--model", "things", "--weights", str(folders[1] / "things"), "--n", "3", "--steps", "1"]
    monkeypatch.setattr("sys.argv", ["sample.py", *arguments, "--device", "cpu", "--sheet", str(tmp_path / "s.png")])
    sample.main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].startswith("| count_right |")
    assert any(line.startswith("| flicker |") for line in lines)
    assert (tmp_path / "s.png").stat().st_size > 0


def test_what_cannot_be_sampled_says_why(folders, tmp_path):
    with pytest.raises(ValueError, match="8 input channels"):
        sample.sample(sample.load(folders[1] / "instruct"), ["make it red"])
    with pytest.raises(FileNotFoundError, match=r"no model in .*train it with .*weft.toyworld.train video"):
        sample.load(tmp_path / "video")


def test_the_models_of_scenes_have_the_vae_that_was_trained_on(folders):
    def weights(folder):
        return sample.load(folder).vae.state_dict()

    crisp, first = (weights(folders[1] / name) for name in ("things", "video"))
    assert all(torch.equal(tensor, crisp[name]) for name, tensor in weights(folders[1] / "epsilon").items())
    assert not any(torch.equal(tensor, crisp[name]) for name, tensor in first.items() if name.endswith("conv.weight"))


def test_the_noise_is_what_an_epsilon_model_is_asked_for(monkeypatch):
    asked = []
    monkeypatch.setattr(image_model, "diffusion_loss", lambda predicted, target, *_: asked.append(target))

    def unet(noised, t, prompt):
        return SimpleNamespace(sample=noised)

    tokenizer = SimpleNamespace(model_max_length=4)
    monkeypatch.setattr(image_model.text, "token_ids", lambda t, texts: torch.zeros(len(texts), 4, dtype=torch.long))
    data = torch.zeros(2, 1, 4, 16, 16), torch.zeros(2, 1, 16, 16, dtype=torch.bool), ["a circle", "a square"]
    for predicts in ("v_prediction", "epsilon"):
        loss = image_model.image_loss("image", unet, lambda p: (p,), tokenizer, RECIPE, data, predicts=predicts)
        loss(0, torch.Generator().manual_seed(0))
    v, noise = asked  # of a latent that is zero, v is the noise times the signal's part, which is less than 1
    assert (v.abs() <= noise.abs()).all()
    assert noise.std().item() == pytest.approx(1, abs=0.1)
    assert v.std() < 0.95 * noise.std()


def test_whitening_keeps_the_pictures_and_standardises_the_latents():
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    vae = models.make_vae().eval()
    before = AutoencoderKL.from_config(vae.config).eval()
    before.load_state_dict(vae.state_dict())
    whiten(vae)
    clips = world.render(world.draw(64, torch.Generator().manual_seed(5)))[0]
    pictures = clips.flatten(0, 1) * 2 - 1
    with torch.no_grad():
        z = torch.cat([vae.encode(part).latent_dist.mean for part in pictures.split(32)])
        torch.testing.assert_close(z.mean((0, 2, 3)), torch.zeros(4), atol=1e-3, rtol=0)
        torch.testing.assert_close(z.std((0, 2, 3)), torch.ones(4), atol=1e-3, rtol=0)
        old, new = before.encode(pictures[:4]).latent_dist, vae.encode(pictures[:4]).latent_dist
        torch.testing.assert_close(vae.decode(new.mean).sample, before.decode(old.mean).sample, atol=1e-4, rtol=1e-4)
        shift = (new.logvar - old.logvar).flatten(2)
        torch.testing.assert_close(shift, shift[:, :, :1].expand_as(shift), atol=1e-4, rtol=1e-4)


class Stopped(Exception):
    pass


@pytest.mark.parametrize("name", ["image", "words", "instruct"])
def test_a_stopped_run_ends_where_an_unbroken_one_does(folders, name, tmp_path, monkeypatch):
    recipe = replace(RECIPE, steps=4)
    monkeypatch.setattr(training, "CHECKPOINT_EVERY", 2)

    def run(label):
        runs, out = tmp_path / label, tmp_path / f"{label}-weights"
        runs.mkdir(exist_ok=True)
        shutil.copytree(folders[1], out, dirs_exist_ok=True)  # each run starts from the same earlier models
        train.MODELS[name](recipe, runs, out, clips=CLIPS)
        return torch.load(runs / f"{name}.pt", weights_only=True)

    def stops(predicted, target, cells, step, steps):
        if step == 3:
            raise Stopped
        return loss(predicted, target, cells, step, steps)

    unbroken, loss = run("unbroken"), losses.diffusion_loss
    module = {"image": image_model, "words": video_model, "instruct": instruct_model}[name]
    monkeypatch.setattr(module, "diffusion_loss", stops)
    with pytest.raises(Stopped):
        run("stopped")
    monkeypatch.setattr(module, "diffusion_loss", loss)
    first = torch.load(tmp_path / "stopped" / f"{name}.pt", weights_only=True)
    resumed = run("stopped")

    assert (first["step"], resumed["step"], unbroken["step"]) == (2, 4, 4)
    for a, b in zip(unbroken["modules"], resumed["modules"], strict=True):
        assert all(torch.equal(a[key], b[key]) for key in a)
    assert all(torch.equal(a, b) for a, b in zip(unbroken["average"], resumed["average"], strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(first["average"], resumed["average"], strict=True))


def test_sprites_weigh_more_at_first_and_the_same_at_last():
    cells = torch.zeros(2, 1, 16, 16)
    cells[:, :, :4, :4] = 1
    first, last = losses.sprite_weight(cells, 0, 100), losses.sprite_weight(cells, 70, 100)
    assert first[0, 0, 0, 0] / first[0, 0, -1, -1] == 5
    assert first.mean() == pytest.approx(1)
    assert torch.equal(last, torch.ones_like(last))
