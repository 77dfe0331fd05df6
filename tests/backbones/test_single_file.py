"""Checkpoints in one file are the models that diffusers' classes are with the same weights."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from weft.backbones.diffusers.loading import load_backbone
from weft.backbones.memory import PlainMemory
from weft.engine.call import Evaluation
from weft.engine.edit import edit
from weft.engine.inversion import add_noise, invert
from weft.engine.words import POSITIVE
from weft.tests.checkpoints import make_checkpoint, make_parts, unet_name, vae_name
from weft.tests.numerics import assert_close
from weft.tests.tiny import make_latents
from weft.toyworld.text import make_tokenizer

KINDS = [("sd1", 4), ("sd2", 4), ("sd1", 8)]


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    make_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def tokenizer(words):
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(words)


@pytest.fixture
def file(tmp_path, tokenizer):
    """A checkpoint to spoil."""
    return make_checkpoint(tmp_path / "model.safetensors", tokenizer)


def load(file, words, **options):
    return load_backbone(file, memory=PlainMemory("cpu"), tokenizer=words, **options)


def change(file, edit):
    tensors = load_file(file)
    edit(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


@pytest.mark.parametrize(("kind", "channels"), KINDS)
def test_every_part_is_the_one_that_was_saved(tmp_path, words, tokenizer, kind, channels):
    backbone = load(make_checkpoint(tmp_path / "a.safetensors", tokenizer, kind, channels), words)
    unet, vae, text = make_parts(kind, tokenizer, channels)
    for got, want in ((backbone.denoiser.network, unet), (backbone.codec.vae, vae), (backbone.text.encoder, text)):
        tensors = got.state_dict()
        assert {n: t.shape for n, t in tensors.items()} == {n: t.shape for n, t in want.state_dict().items()}
        assert all(torch.equal(tensors[name], tensor) for name, tensor in want.state_dict().items())
        assert not got.training
        assert not any(p.requires_grad for p in got.parameters())
    for module in (backbone.denoiser.network, unet):
        torch.nn.Module.to(module, torch.float64)
    z, prompt = make_latents(size=(8, 8)), backbone.text.embed("a red square")
    ids = backbone.text.tokenizer("a red square", padding="max_length", max_length=16, return_tensors="pt").input_ids
    image = make_latents(size=(8, 8), seed=1) if channels == 8 else None
    with torch.no_grad():
        got = backbone.denoiser.predict(Evaluation(z[None], 321, (prompt,), (POSITIVE,), image=image))
        x = z if image is None else torch.cat([z, image / 0.18215], 1)
        want = unet(x.double(), 321, text(ids)[0].double().expand(len(z), -1, -1)).sample
        assert_close(got[0], want.float())
        frames = torch.rand(1, 16, 16, 3)
        assert_close(
            backbone.codec.encode(frames), vae.encode(frames.movedim(-1, 1) * 2 - 1).latent_dist.mode()
        )  # of 8 pixels a cell
    assert (backbone.codec.layout.pixels, backbone.codec.vae.config.scaling_factor) == (8, 0.18215)


def test_a_text_of_2_x_is_padded_as_it_was_trained(tmp_path, words, tokenizer):
    first = load(make_checkpoint(tmp_path / "1.safetensors", tokenizer), words)
    second = load(make_checkpoint(tmp_path / "2.safetensors", tokenizer, "sd2"), words)
    assert (first.text.tokenizer.pad_token, second.text.tokenizer.pad_token) == ("<|endoftext|>", "!")


@pytest.mark.parametrize(
    ("kind", "more", "prediction"),
    [
        ("sd1", {}, "epsilon"),
        ("sd2", {}, "epsilon"),
        ("sd2", {"v_pred": torch.zeros(0)}, "v_prediction"),
        ("sd2", {unet_name("up_blocks.3.attentions.2.transformer_blocks.0.norm1.bias"): None}, "v_prediction"),
        ("sd2", {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}, "v_prediction"),
    ],
)
def test_what_a_checkpoint_predicts_is_read_off_it(tmp_path, words, tokenizer, kind, more, prediction):
    uneven = torch.randn(32, generator=torch.Generator().manual_seed(0)) * 0.2
    more = {name: uneven if tensor is None else tensor for name, tensor in more.items()}
    schedule = load(make_checkpoint(tmp_path / "a.safetensors", tokenizer, kind, **more), words).denoiser.schedule(4)
    assert schedule.prediction == prediction
    assert (schedule.signal[-1] == 0) == ("ztsnr" in more)
    assert schedule.timesteps == ((249, 499, 749, 999) if "ztsnr" in more else (1, 251, 501, 751))


def test_averaged_weights_beside_the_network_are_left_alone(tmp_path, words, tokenizer):
    ema = {f"model_ema.diffusion_modelinput_blocks{i}": torch.ones(1) for i in range(200)}
    a = load(make_checkpoint(tmp_path / "a.safetensors", tokenizer), words)
    b = load(make_checkpoint(tmp_path / "b.safetensors", tokenizer, **ema), words)
    assert a.denoiser.fingerprint == b.denoiser.fingerprint


def test_whole_edits(tmp_path, words, tokenizer):
    z = make_latents(size=(8, 8))
    image = load(make_checkpoint(tmp_path / "a.safetensors", tokenizer), words)
    trajectory = invert(image, z, image.text.embed("a red square"), steps=2)
    assert edit(image, trajectory, image.text.embed("a blue square")).isfinite().all()
    editor = load(make_checkpoint(tmp_path / "b.safetensors", tokenizer, channels=8), words)
    noised = add_noise(editor, z, editor.text.embed(""), steps=2)
    assert editor.denoiser.sees_source
    assert edit(editor, noised, editor.text.embed("make it blue")).isfinite().all()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_the_dtype_is_that_of_the_network(file, words, dtype):
    backbone = load(file, words, dtype=dtype)
    assert {p.dtype for p in backbone.denoiser.network.parameters()} == {getattr(torch, dtype)}
    assert {p.dtype for p in backbone.codec.vae.parameters()} == {torch.float32}


def without(prefix):
    return lambda tensors: [tensors.pop(name) for name in list(tensors) if name.startswith(prefix)]


def put(**more):
    return lambda tensors: tensors.update({name.replace("__", "."): tensor for name, tensor in more.items()})


@pytest.mark.parametrize(
    ("spoil", "match"),
    [
        (without("model.diffusion_model."), "no checkpoint of Stable Diffusion 1.x or 2.x.*it has no model.diffusion"),
        (without("first_stage_model."), "'model.safetensors' has no VAE: use a checkpoint with all three parts"),
        (without("cond_stage_model."), "'model.safetensors' has no text encoder: use a checkpoint with all three"),
        (put(conditioner__embedders__0__x=torch.ones(1)), "an SDXL checkpoint, which is not supported"),
        (without("model.diffusion_model.out.2"), "lacks 2 of the tensors of a UNet2DConditionModel, conv_out.bias"),
        (without("model.diffusion_model.input_blocks.0"), r"lacks the tensor model.diffusion_model.input_blocks.0.0"),
        (without("model.diffusion_model.output_blocks.11"), "has 11 output_blocks and Stable Diffusion .* have 12"),
        (without(vae_name("decoder.conv_in")), "lacks 2 of the tensors of a AutoencoderKL, decoder.conv_in.bias"),
        (
            without("cond_stage_model.transformer.text_model.final"),
            "lacks 2 of the tensors of a CLIPTextModel, .*final_layer_norm.bias",
        ),
        (
            put(**{unet_name("conv_in.bias").replace(".", "__"): torch.ones(3)}),
            r"conv_in.bias is \[3\] and a UNet2DConditionModel has it \[32\]",
        ),
    ],
)  # fmt: skip
def test_a_checkpoint_of_something_else_is_refused(file, words, spoil, match):
    change(file, spoil)
    with pytest.raises(ValueError, match=match):
        load(file, words)


def test_a_checkpoint_that_is_cut_off_is_named(file, words):
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"model\.safetensors' is not a whole safetensors file"):
        load(file, words)


def test_pickles_are_not_read(file, words):
    with pytest.raises(ValueError, match=r"'model\.ckpt' may be a pickle, which could run code"):
        load(file.rename(file.with_suffix(".ckpt")), words)


def test_a_tokenizer_is_asked_for(file):
    with pytest.raises(ValueError, match=r"'model\.safetensors' has no tokenizer, as no single file has"):
        load(file, None)


def test_no_random_numbers_of_others_are_drawn(file, words):
    before = torch.get_rng_state()
    load(file, words)
    assert torch.equal(torch.get_rng_state(), before)
