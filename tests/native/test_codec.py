"""Core's VAEs: latents on a wire are core's own, and where a pixel is in them."""

import json

import comfy.ops
import comfy.sd
import comfy.utils
import pytest
import torch
from comfy.ldm.lightricks.model import LTXVModel
from comfy.ldm.lightricks.vae.causal_video_autoencoder import VideoVAE

from weft.backbones.comfy.codec import layout_of
from weft.backbones.comfy.loading import from_comfy
from weft.backbones.comfy.text import prompt_of
from weft.engine.edit import edit
from weft.engine.inversion import invert
from weft.engine.words import Layout
from weft.tests.native.tiny import StandInVAE, make, times

TRANSFORMER = {
    "in_channels": 128,
    "cross_attention_dim": 64,
    "attention_head_dim": 16,
    "num_attention_heads": 4,
    "caption_channels": 48,
    "num_layers": 2,
    "vae_scale_factors": [2, 16, 16],
    "causal_temporal_positioning": False,
}
VAE = {
    "dims": 3,
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 128,
    "blocks": [["compress_all", 1], ["compress_space", 1], ["res_x", 1]],
    "norm_layer": "pixel_norm",
    "patch_size": 4,
    "latent_log_var": "uniform",
    "causal_decoder": False,
    "spatial_padding_mode": "zeros",
}


@pytest.fixture(scope="module")
def ltx(tmp_path_factory):
    """An LTX-Video file whose sizes are its own, by core's own loader: MODEL and VAE."""
    torch.manual_seed(0)
    network = LTXVModel(**TRANSFORMER, dtype=torch.float32, device="cpu", operations=comfy.ops.disable_weight_init)
    vae = VideoVAE(config=VAE)
    for weight in [*network.parameters(), *vae.parameters()]:
        torch.nn.init.normal_(weight, std=0.02)
    for name, buffer in vae.per_channel_statistics.named_buffers():
        buffer.fill_(1.0 if "std" in name else 0.0)
    tensors = {f"model.diffusion_model.{k}": t for k, t in network.state_dict().items()}
    tensors |= {f"vae.{k}": t for k, t in vae.state_dict().items()}
    path = tmp_path_factory.mktemp("ltx") / "ltx.safetensors"
    config = json.dumps({"transformer": TRANSFORMER, "vae": VAE})
    halves = {name: tensor.half().contiguous() for name, tensor in tensors.items()}
    comfy.utils.save_torch_file(halves, str(path), metadata={"config": config})
    with torch.inference_mode():
        return comfy.sd.load_checkpoint_guess_config(str(path), output_vae=True, output_clip=False)[::2]


@pytest.mark.parametrize(
    ("ratio", "layout"),
    [
        (8, Layout(8)),
        (times(4, 8), Layout(8, 4, True)),
        (times(8, 32), Layout(32, 8, True)),
        (times(6, 8), Layout(8, 6, True)),
    ],
    ids=["Stable Diffusion", "Wan", "LTX", "Mochi"],
)
def test_layouts(ratio, layout):
    assert layout_of(StandInVAE(4, ratio)) == layout


def test_the_sizes_of_a_file_are_what_its_vae_does(ltx):
    """Core's own table says 32 pixels and 8 frames, whatever the file says."""
    _, vae = ltx
    backbone = from_comfy(*ltx)
    frames = torch.rand(9, 64, 96, 3)
    wire = backbone.codec.encode(frames)
    layout = backbone.codec.layout
    assert layout == Layout(16, 2, True)
    assert wire.shape == (1, 128, layout.latent_frames(9), 64 // layout.pixels, 96 // layout.pixels)
    with torch.inference_mode():
        assert torch.equal(wire, vae.encode(frames).float())


def test_a_clip_through_a_file_of_core(ltx):
    """Frames in, frames out: encoded, inverted, edited, decoded."""
    backbone = from_comfy(*ltx)
    text = [[torch.randn(1, 16, 48), {"attention_mask": torch.ones(1, 16, dtype=torch.long)}]]
    wire = backbone.codec.encode(torch.rand(9, 64, 64, 3))
    source = invert(backbone, wire, prompt_of(text), steps=2)
    latents = edit(backbone, source, prompt_of([[-text[0][0], text[0][1]]]), guidance=2.0)
    assert latents.shape == wire.shape
    frames = backbone.codec.decode(latents)
    assert frames.shape == (9, 64, 64, 3)
    assert 0 <= frames.min() <= frames.max() <= 1


def test_what_does_not_fit_is_cut_and_told(ltx, caplog):
    codec = from_comfy(*ltx).codec
    frames = torch.rand(11, 64, 64, 3)
    with caplog.at_level("WARNING"):
        assert torch.equal(codec.encode(frames), codec.encode(frames[:9]))
    assert "of 11 the last 2 are left out" in caplog.text
    with pytest.raises(ValueError, match="wants width and height divisible by 32: scale or crop to 64x32"):
        codec.encode(frames[:, :50])
    with pytest.raises(ValueError, match="at least 1 frame"):
        codec.encode(frames[:0])
    with pytest.raises(ValueError, match=r"\[F, H, W, 3\]"):
        codec.encode(frames[0])


def test_wrong_latents_are_refused(ltx):
    codec = from_comfy(*ltx).codec
    with pytest.raises(ValueError, match=r"\[1, 128, F, h, w\]"):
        codec.scale(torch.randn(3, 4, 8, 8))
    with pytest.raises(ValueError, match="NaN"):
        codec.decode(torch.full((1, 128, 1, 4, 4), torch.nan))


def test_the_vae_of_another_model_is_refused(ltx):
    model, _ = ltx
    with pytest.raises(ValueError, match="128 channels and this VAE makes 4"):
        from_comfy(model, StandInVAE())


@pytest.mark.parametrize("name", ["sd15", "wan", "hunyuan"])
def test_there_and_back_is_the_same(name):
    made = make(name)
    codec = from_comfy(made.patcher, made.vae).codec
    wire = codec.unscale(made.latents(1))
    assert wire.shape[1] == made.family.size[1]
    torch.testing.assert_close(codec.scale(wire), made.latents(1))
