"""The flow model's file in ComfyUI: its own loader takes it, and its classes compute what ours were trained to."""

import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from weft.headless.comfyui import interpreter_of
from weft.tests.numerics import assert_close
from weft.toyworld import ltx

SCRIPT = Path(__file__).with_name("core_ltx.py")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Every weight counts: none is 0, nor is a latent channel's mean, and no two have one deviation."""
    torch.manual_seed(0)
    vae, transformer = ltx.make_vae(), ltx.make_transformer()
    torch.nn.init.normal_(transformer.proj_out.weight, std=0.1)
    torch.nn.init.normal_(transformer.proj_out.bias, std=0.1)
    vae.latents_mean.normal_(std=0.2)
    vae.latents_std.uniform_(0.5, 2)
    file = tmp_path_factory.mktemp("ltx") / ltx.FILE
    ltx.write(file, vae, transformer)
    return file


@pytest.fixture(scope="module")
def given():
    draw = torch.Generator().manual_seed(1)
    shape = (2, ltx.LATENT, ltx.FRAMES, 8, 8)
    return {
        "video": torch.rand(ltx.FRAMES, 3, 64, 64, generator=draw),
        "latents": torch.randn(1, *shape[1:], generator=draw),
        "x": torch.randn(shape, generator=draw),
        "t": torch.tensor([0.9, 0.3]),
        "prompts": torch.randn(2, 16, 64, generator=draw),
    }


@pytest.fixture(scope="module")
def core(comfyui, checkpoint, given, tmp_path_factory):
    """What core makes of it, and what it says."""
    folder = tmp_path_factory.mktemp("core")
    save_file(given, folder / "given.safetensors")
    files = [str(f) for f in (comfyui, checkpoint, folder / "given.safetensors", folder / "made.safetensors")]
    run = subprocess.run(
        [str(interpreter_of(comfyui)), str(SCRIPT), *files], capture_output=True, text=True, timeout=300, check=False
    )
    assert run.returncode == 0, run.stderr
    return load_file(files[-1]), run.stderr + run.stdout


def test_core_finds_every_weight_where_it_looks(core):
    said = core[1].lower()
    assert not [word for word in ("missing vae", "unet missing", "unexpected") if word in said], said


@torch.no_grad()
def test_cores_transformer_predicts_the_velocity_that_ours_does(core, checkpoint, given):
    x, t, prompts = (given[name] for name in ("x", "t", "prompts"))
    ours = ltx.velocity(ltx.load_transformer(checkpoint), x, t, prompts, ltx.coordinates(*x.shape[2:]))
    assert_close(core[0]["velocity"], ours)
    share = t[:, None, None, None, None]
    assert_close(core[0]["denoised"], x - share * core[0]["velocity"])  # and core takes it for what it is


@torch.no_grad()
def test_cores_vae_encodes_and_decodes_as_ours_does(core, checkpoint, given):
    vae = ltx.load_vae(checkpoint)
    assert_close(core[0]["latents"], ltx.encode(vae, given["video"][None]))
    ours = ltx.decode(vae, given["latents"]).movedim(2, -1)
    assert_close(core[0]["frames"], ours)


def test_core_samples_with_it(core, given):
    assert core[0]["sampled"].shape == given["x"][:1].shape
    assert core[0]["sampled"].isfinite().all()
