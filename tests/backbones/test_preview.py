import pytest
import torch

from weft.backbones.preview import FEW, LatentPreview, few
from weft.engine.source import Inverted
from weft.engine.words import Layout
from weft.tests.tiny import make_latents


@pytest.fixture
def trajectory(tiny):
    return Inverted(torch.randn(3, 5, 4, 6, 10), tiny.denoiser.schedule(2), tiny.text.embed("a dog"), "paper", "")


def test_a_preview_is_a_small_picture_of_every_frame(tiny, trajectory):
    preview = LatentPreview(tiny, trajectory)
    frames = preview(20 * make_latents(frames=5))
    assert frames.shape == (5, 6, 10, 3)
    assert frames.dtype == torch.float32
    assert (frames.min(), frames.max()) == (0, 1)


def test_a_preview_looks_like_what_the_latents_decode_to(tiny, trajectory, monkeypatch):
    """With a decoder that is linear, the map is found again."""
    colors = torch.randn(4, 3) / 20

    def decode(latents):
        pixels = torch.einsum("fchw,cd->fhwd", tiny.codec.scale(latents), colors) + 0.5
        return pixels.repeat_interleave(2, 1).repeat_interleave(2, 2)

    monkeypatch.setattr(tiny.codec, "decode", decode)
    monkeypatch.setattr("weft.backbones.preview._recolored", lambda frames: frames)
    monkeypatch.setattr(tiny.codec, "encode", lambda frames: tiny.codec.unscale(few(trajectory.latents[0])))
    z = trajectory.latents[0]
    want = torch.einsum("fchw,cd->fhwd", z, colors) + 0.5
    torch.testing.assert_close(LatentPreview(tiny, trajectory)(z), want.clamp(0, 1), atol=5e-3, rtol=0)


def test_flat_clips_and_comfyuis_inference_mode_do_no_harm(tiny, trajectory):
    flat = Inverted(torch.zeros(3, 2, 4, 6, 10), trajectory.schedule, trajectory.prompt, "paper", "")
    with torch.inference_mode():
        preview = LatentPreview(tiny, flat)
        assert preview(torch.randn(2, 4, 6, 10)).isfinite().all()


def test_it_is_fitted_on_a_few_frames_spread_over_the_clip(tiny, trajectory, monkeypatch):
    """With a decoder whose colors change along the clip: frames from its start alone would miss it."""
    long = Inverted(torch.randn(3, 40, 4, 6, 10), trajectory.schedule, trajectory.prompt, "paper", "")
    decoded = []

    def decode(latents):
        decoded.extend(tiny.codec.scale(latents))
        return torch.full((len(latents), 12, 20, 3), 0.5)

    monkeypatch.setattr(tiny.codec, "decode", decode)
    LatentPreview(tiny, long)
    places = [next(i for i, z in enumerate(long.latents[0]) if torch.allclose(z, d)) for d in decoded]
    assert places == [0, 13, 26, 39]


@pytest.mark.parametrize("frames", [1, 2, 3, 4, 5, 7, 1440])
def test_few_frames_are_the_first_the_last_and_some_between(frames):
    chosen = few(torch.arange(frames)).tolist()
    assert len(set(chosen)) == len(chosen) == min(frames, FEW)
    assert chosen == sorted(chosen)
    assert (chosen[0], chosen[-1]) == (0, frames - 1)


def test_a_latent_frame_of_several_frames_has_their_mean(tiny, trajectory, monkeypatch):
    """As causal video VAEs have it: the first alone, then four at a time."""
    monkeypatch.setattr(tiny.codec, "layout", Layout(2, 4, True))
    colors = torch.randn(4, 3) / 20

    def decode(latents):
        pixels = torch.einsum("fchw,cd->fhwd", tiny.codec.scale(latents), colors) + 0.5
        groups = [pixels[:1], *(pixels[t : t + 1].expand(4, -1, -1, -1) for t in range(1, len(pixels)))]
        return torch.cat(groups).repeat_interleave(2, 1).repeat_interleave(2, 2)

    monkeypatch.setattr(tiny.codec, "decode", decode)
    z = trajectory.latents[0]
    want = torch.einsum("fchw,cd->fhwd", z, colors) + 0.5
    torch.testing.assert_close(LatentPreview(tiny, trajectory)(z), want.clamp(0, 1), atol=5e-3, rtol=0)


def test_new_colors_are_shown_as_they_are(tiny, trajectory, monkeypatch):
    """A source in shades of red says nothing of the rest of the decoder's map: the frames in other colors do."""
    colors = torch.tensor([[0.3, 0.0, 0.0], [0.0, 0.3, 0.0], [0.0, 0.0, 0.3]])
    scale = tiny.codec.scale(torch.ones(2, 4, 1, 1)).flatten()[0]

    def decode(latents):
        return (torch.einsum("fchw,cd->fhwd", tiny.codec.scale(latents)[:, :3], colors) + 0.5).clamp(0, 1)

    def encode(frames):
        z = torch.einsum("fhwd,dc->fchw", frames - 0.5, torch.linalg.inv(colors)) / scale
        return torch.cat([z, torch.zeros_like(z[:, :1])], 1)

    monkeypatch.setattr(tiny.codec, "decode", decode)
    monkeypatch.setattr(tiny.codec, "encode", encode)
    red = torch.zeros(3, 5, 4, 6, 10)
    red[:, :, 0] = torch.rand(3, 5, 6, 10) * 2 - 1
    source = Inverted(red, trajectory.schedule, trajectory.prompt, "paper", "")
    green = torch.zeros(2, 4, 6, 10)
    green[:, 1] = 1.0
    shown = LatentPreview(tiny, source)(green)
    torch.testing.assert_close(shown, decode(green / scale), atol=0.05, rtol=0)
