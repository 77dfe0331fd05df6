"""The flow model: its file, its latents, and training in miniature."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open

from weft.tests.conftest import ROOT
from weft.tests.numerics import assert_close
from weft.toyworld import flow_model, flow_vae, ltx, training, world
from weft.toyworld.training import Recipe

WEIGHTS = ROOT / "toyworld" / "weights"
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
MEGABYTE = 2**20


@pytest.fixture(scope="module", autouse=True)
def small():
    """Small batches and pools, for speed; what is computed stays the same."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flow_vae, "BATCH", 2)
        patch.setattr(flow_vae, "POOL", 8)
        patch.setattr(flow_model, "BATCH", 4)
        yield


@pytest.fixture(scope="module")
def vae():
    torch.manual_seed(0)
    vae = ltx.make_vae().eval().requires_grad_(False)
    flow_vae.normalise(vae, "cpu", 16)
    return vae


@pytest.fixture(scope="module")
def data(vae):
    return flow_model.flow_set(vae, flow_model.load_hearing(WEIGHTS), 12, "cpu")


@pytest.fixture(scope="module")
def file(vae, tmp_path_factory):
    torch.manual_seed(1)
    file = tmp_path_factory.mktemp("flow") / ltx.FILE
    ltx.write(file, vae, ltx.make_transformer())
    return file


def test_the_file_states_its_sizes_and_is_small(file):
    assert file.stat().st_size < 12 * MEGABYTE
    with safe_open(file, "pt") as opened:
        sizes = json.loads(opened.metadata()["config"])
        assert all(opened.get_tensor(name).dtype == torch.float16 for name in opened.keys())  # noqa: SIM118
        assert f"model.diffusion_model.transformer_blocks.{ltx.LAYERS - 1}.attn1.q_norm.weight" in opened.keys()  # noqa: SIM118
    assert sizes == {"transformer": ltx.TRANSFORMER, "vae": ltx.VAE}


def test_what_is_written_is_read(file, vae):
    read = ltx.load_vae(file)
    for (name, got), want in zip(read.state_dict().items(), vae.state_dict().values(), strict=True):
        assert torch.equal(got, want.half().float()), name
    assert not any(p.requires_grad for p in ltx.load_transformer(file).parameters())


def test_a_file_that_is_missing_or_holds_no_transformer_is_named(vae, tmp_path):
    with pytest.raises(FileNotFoundError, match="train flow_vae"):
        ltx.load_vae(tmp_path / ltx.FILE)
    ltx.write(tmp_path / ltx.FILE, vae)
    ltx.load_vae(tmp_path / ltx.FILE)
    with pytest.raises(ValueError, match=r"train flow$"):
        ltx.load_transformer(tmp_path / ltx.FILE)


@torch.no_grad()
def test_a_latent_frame_depends_on_its_frame_and_those_before(vae):
    ((_, video, _),) = ltx.drawn(1, 0, "cpu")
    changed = video.clone()
    changed[:, 5] = 1 - changed[:, 5]
    same = (ltx.encode(vae, video) == ltx.encode(vae, changed)).all(-1).all(-1).all(1)[0]
    assert same.tolist() == [True] * 5 + [False] * 4
    assert ltx.decode(vae, ltx.encode(vae, video)).shape == video.shape


def test_latents_have_zero_mean_in_each_channel_and_one_scale(vae):
    z = torch.cat([ltx.encode(vae, video) for _, video, _ in ltx.drawn(16, 5, "cpu", 64)])
    assert_close(z.mean((0, 2, 3, 4)), torch.zeros(ltx.LATENT), torch.float16)
    assert_close(z.var((0, 2, 3, 4)).mean(), torch.tensor(1.0), torch.float16)
    assert vae.latents_std.unique().numel() == 1


def test_cells_are_where_the_sprite_is():
    clips, _, alpha = next(ltx.drawn(4, 3, "cpu"))
    cells = ltx.cells(alpha)
    assert cells.shape == (4, 1, ltx.FRAMES, 8, 8)
    rows, frames = torch.arange(4)[:, None], torch.arange(ltx.FRAMES)
    x, y = (clips.center / ltx.PATCH).long().unbind(-1)
    assert cells[rows, 0, frames, y, x].all()
    assert 0.04 < cells.float().mean() < 0.3


def test_each_clip_has_the_words_of_its_own_caption(data):
    tokenizer, encoder = flow_model.load_hearing(WEIGHTS)
    sentences = [s for clips, *_ in ltx.drawn(12, 1234, "cpu") for s in world.captions(clips)]
    for row, sentence in enumerate(sentences):
        for prefix, start in enumerate(("", "a video of ")):
            ids = flow_model.text.token_ids(tokenizer, [start + sentence])
            assert_close(data.prompts[data.caption[row], prefix], encoder(ids)[0][0])
    assert_close(data.prompts[-1, 0], encoder(flow_model.text.token_ids(tokenizer, [""]))[0][0])


def test_a_network_that_knows_the_velocity_has_no_loss(data):
    """From x = (1 - t) clean + t noise and the clean latents, the velocity is (x - clean) / t."""
    clean = data.latents[:1].float()
    one = replace(data, latents=data.latents[:1], cells=data.cells[:1], caption=data.caption[:1])

    def knows(tokens, prompts, t, mask, video_coords, return_dict):
        x = tokens.transpose(1, 2).unflatten(2, clean.shape[2:])
        v = (x - clean) / (t / 1000)[:, None, None, None, None]
        return (v.flatten(2).transpose(1, 2),)

    values = flow_model.flow_loss(knows, one, Recipe(steps=10, peak_rate=1e-3))(0, None)
    assert values["mse"] < 1e-6
    values = flow_model.flow_loss(lambda x, *_, **__: (torch.zeros_like(x),), one, Recipe(steps=10, peak_rate=1e-3))(
        0, None
    )
    assert values["mse"] > 1


def test_times_cover_the_range_and_lean_towards_noise():
    t = flow_model.shifted(torch.linspace(0, 1, 101))
    assert t[[0, -1]].tolist() == [0, 1]
    assert (t.diff() > 0).all()
    assert t[50] == pytest.approx(0.75)


def test_a_step_draws_the_same_noise_again_and_no_two_steps_do():
    recipe = Recipe(steps=1, peak_rate=1, seed=3)
    a, b, c = (torch.rand(4, generator=training.noise_source(recipe, step)) for step in (7, 7, 8))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_what_both_runs_write_samples(tmp_path):
    out = tmp_path / "weights"
    for part in ("tokenizer", "text_encoder"):
        shutil.copytree(WEIGHTS / "video" / part, out / "video" / part)
    recipe = Recipe(steps=2, peak_rate=2e-3, warmup=1, device=DEVICE)
    runs = tmp_path / "runs"
    flow_vae.train_flow_vae(recipe, runs, out)
    flow_model.train_flow(recipe, runs, out, clips=8)
    model = flow_model.load_flow(out / "flow")
    clips = [flow_model.sample_flow(model, ["a red square on a teal striped background"], 2, seed=s) for s in (0, 0, 1)]
    assert clips[0].shape == (1, ltx.FRAMES, 3, 64, 64)
    assert torch.equal(clips[0], clips[1])
    assert not torch.equal(clips[0], clips[2])


@pytest.mark.parametrize("which", ["vae", "transformer"])
def test_the_loss_falls(which, data, tmp_path):
    torch.manual_seed(0)
    recipe = Recipe(steps=16, peak_rate=4e-3, warmup=1, ema=0)
    model = ltx.make_vae() if which == "vae" else ltx.make_transformer()
    loss = flow_vae.flow_vae_loss(model, recipe) if which == "vae" else flow_model.flow_loss(model, data, recipe)
    before = loss(0, None)["mse"].item()
    training.train(which, [model], loss, recipe, tmp_path)
    assert loss(0, None)["mse"] < 0.9 * before  # on the same clips and noise
