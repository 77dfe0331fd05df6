"""The source at every noise level: inverted, or with noise put on it; and what belongs to it."""

from dataclasses import replace

import pytest
import torch

from weft.backbones.diffusers.text import prompt_of
from weft.engine.ports import Backbone
from weft.engine.source import Inverted, Noised
from weft.tests.engine.analytic import Gaussian
from weft.tests.engine.test_schedule import PREDICTIONS

STEPS = 4


@pytest.fixture
def backbone():
    return Gaussian()


@pytest.fixture
def trajectory(backbone):
    schedule, prompt = backbone.denoiser.schedule(STEPS), backbone.text.embed("a dog")
    return Inverted(torch.randn(STEPS + 1, 3, 4, 6, 10), schedule, prompt, "paper", "gaussian")


@pytest.fixture(params=PREDICTIONS)
def noised(request):
    schedule, prompt = Gaussian(prediction_type=request.param).denoiser.schedule(STEPS), Gaussian().text.embed("a dog")
    return Noised(torch.randn(3, 4, 6, 10), torch.randn(3, 4, 6, 10), schedule, prompt)


# ---- inverted --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(4, 3, 4, 6, 10), (6, 3, 4, 6, 10), (5, 4, 6, 10)])
def test_a_trajectory_has_a_latent_for_every_level(trajectory, shape):
    want = rf"of 4 steps wants latents \[5, F, C, h, w\], got \[{', '.join(map(str, shape))}\]"
    with pytest.raises(ValueError, match=want):
        replace(trajectory, latents=torch.zeros(shape))


def test_a_trajectory_states_its_frames_and_its_noise(trajectory):
    assert trajectory.frames == 3
    assert trajectory.shape == (3, 4, 6, 10)
    assert trajectory.noise_std == pytest.approx(trajectory.latents[-1].std().item())
    assert all(torch.equal(trajectory.at(level), trajectory.latents[level]) for level in range(STEPS + 1))


def test_a_thinned_trajectory_keeps_both_ends_and_every_so_many_levels(trajectory):
    got = trajectory.thinned(2)
    assert torch.equal(got.latents, trajectory.latents[[0, 2, 4]])
    assert [got.schedule.label(level) for level in (1, 2)] == [trajectory.schedule.label(level) for level in (2, 4)]
    for kept, level in enumerate((0, 2, 4)):
        assert got.schedule.signal[kept] == trajectory.schedule.signal[level]
        assert got.schedule.noise[kept] == trajectory.schedule.noise[level]
    assert torch.equal(trajectory.thinned(4).latents, trajectory.latents)
    assert (got.prompt, got.convention, got.model) == (trajectory.prompt, trajectory.convention, trajectory.model)


def test_a_thinned_trajectory_does_not_keep_the_levels_it_left_out(trajectory):
    assert trajectory.thinned(2).latents.untyped_storage().nbytes() == 3 * trajectory.at(0).nbytes


@pytest.mark.parametrize("steps", [0, 3, 8, -2])
def test_a_trajectory_cannot_be_thinned_unevenly(trajectory, noised, steps):
    for source in (trajectory, noised):
        with pytest.raises(ValueError, match=f"4 steps cannot be thinned to {steps}: want a number that divides them"):
            source.thinned(steps)


# ---- noised ----------------------------------------------------------------------------------------------------------


def test_a_noised_clip_is_at_every_level_the_clip_with_one_noise(noised):
    s = noised.schedule
    assert noised.at(0) is noised.clean  # the clip itself, whatever the schedule says of its cleanest level
    for level in range(1, STEPS + 1):
        assert torch.equal(noised.at(level), s.signal[level] * noised.clean + s.noise[level] * noised.eps)
    assert (noised.shape, noised.frames) == ((3, 4, 6, 10), 3)
    assert noised.noise_std == pytest.approx(noised.at(STEPS).std().item())
    assert (noised.convention, noised.model) == ("add_noise", "")


def test_noise_may_be_the_same_in_all_frames(noised):
    for eps in (noised.eps[:1], noised.eps[0], torch.ones(())):
        shared = replace(noised, eps=eps)
        for level in range(STEPS + 1):
            assert torch.equal(shared.at(level), replace(noised, eps=eps.expand_as(noised.clean)).at(level))


def test_a_thinned_noised_clip_is_the_clip_at_every_so_many_levels(noised):
    got = noised.thinned(2)
    assert (got.clean is noised.clean, got.eps is noised.eps, got.schedule.steps) == (True, True, 2)
    for kept, level in enumerate((0, 2, 4)):
        assert torch.equal(got.at(kept), noised.at(level))
    assert [got.schedule.label(k) for k in (1, 2)] == [noised.schedule.label(k) for k in (2, 4)]


@pytest.mark.parametrize(("clean", "eps"), [((4, 6, 10), (4, 6, 10)), ((3, 4, 6, 10), (2, 3, 4, 6, 10))])
def test_noise_of_another_clip_is_refused(noised, clean, eps):
    with pytest.raises(ValueError, match=r"want latents \[F, C, h, w\] and noise for them, got \["):
        replace(noised, clean=torch.zeros(clean), eps=torch.zeros(eps))


def test_noise_that_cannot_be_put_on_the_clip_is_refused_in_the_same_words(noised):
    with pytest.raises(ValueError, match=r"want latents \[F, C, h, w\] and noise for them, got \["):
        replace(noised, eps=torch.zeros(2, 4, 6, 10))


# ---- what belongs together -------------------------------------------------------------------------------------------


def test_a_backbone_refuses_a_trajectory_of_another_network(trajectory, backbone):
    backbone.require(trajectory, backbone.text.embed("a cat"))
    other = Backbone("other", Gaussian().denoiser, backbone.codec, backbone.text)
    other.require(trajectory)
    other.denoiser.fingerprint = "0123"
    with pytest.raises(
        ValueError, match=r"another model than 'other' \(fingerprint gaussian, got 0123\): invert the clip"
    ):
        other.require(trajectory)


def test_any_network_may_start_from_noise_that_was_put_on_the_clip(noised, backbone):
    backbone.denoiser.fingerprint = "0123"
    backbone.require(noised, noised.prompt)


def test_a_backbone_refuses_prompts_that_do_not_fit(trajectory, backbone):
    good = backbone.text.embed("a cat")
    with pytest.raises(ValueError, match="'a cat' was encoded by another model than 'gaussian': encode it with this"):
        backbone.require(trajectory, good, replace(good, encoder="0123"))
    backbone.require(trajectory, prompt_of(torch.zeros(3, 2, 3), "a cat", good.encoder))
    with pytest.raises(ValueError, match="'a cat' has embeddings for 5 frames and the clip has 3"):
        backbone.require(trajectory, good, prompt_of(torch.zeros(5, 2, 3), "a cat", good.encoder))
