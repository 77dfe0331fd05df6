"""Starting from noise that was put on the clip, without an inversion."""

import pytest
import torch

from weft.engine.edit import edit
from weft.engine.inversion import add_noise, source_of
from weft.engine.source import Noised
from weft.tests.engine.analytic import Gaussian
from weft.tests.engine.test_schedule import PREDICTIONS, ZERO_SNR
from weft.tests.numerics import assert_close


@pytest.fixture(
    params=[{"prediction_type": p} for p in PREDICTIONS] + [ZERO_SNR], ids=["epsilon", "v", "flow", "pure noise"]
)
def backbone(request):
    return Gaussian(**request.param)


def noisy(backbone, latents, **options):
    return add_noise(backbone, latents, backbone.text.embed(""), **{"steps": 5, **options})


def noise_of(trajectory):
    """[S, F, C, h, w] the noise on each level."""
    s = trajectory.schedule
    levels = range(1, s.steps + 1)
    return torch.stack([(trajectory.at(k) - s.signal[k] * trajectory.at(0)) / s.noise[k] for k in levels])


def all_levels(trajectory):
    """[S+1, F, C, h, w]"""
    return torch.stack([trajectory.at(level) for level in range(trajectory.schedule.steps + 1)])


def test_every_level_is_the_clip_with_one_noise(backbone):
    clip = backbone.sample(frames=3)
    trajectory = noisy(backbone, clip)
    assert isinstance(trajectory, Noised)
    assert torch.equal(trajectory.at(0), backbone.codec.scale(clip))
    eps = noise_of(trajectory)
    torch.testing.assert_close(eps, eps[-1:].expand_as(eps), rtol=0, atol=1e-4)  # divided by little noise
    assert 0.8 < eps[-1].std() < 1.2
    assert trajectory.convention == "add_noise"
    assert backbone.evaluations == []


def test_the_network_that_knows_the_noise_gives_the_clip_back(backbone):
    """The answer it should give, at any level, is the one that leads from there to the clip and to the noise."""
    clip = backbone.codec.scale(backbone.sample())
    schedule, eps = backbone.denoiser.schedule(5), torch.randn(clip.shape)
    for level in range(1, 6):
        x = schedule.noised(clip, eps, level)
        got, noise = schedule.split(x, schedule.answer(clip, eps, level), level)
        torch.testing.assert_close(got, clip, rtol=0, atol=1e-4)
        torch.testing.assert_close(noise, eps, rtol=0, atol=1e-4)


def test_noise_is_shared_or_each_frames_own(backbone):
    clip = backbone.sample(frames=3)
    shared, own = (noise_of(noisy(backbone, clip, noise=n))[-1] for n in ("shared", "per_frame"))
    assert_close(shared[1:], shared[:1].expand(2, -1, -1, -1), torch.float16)
    assert (own[0] - own[1]).abs().max() > 0.5
    assert (own[1] - own[2]).abs().max() > 0.5


@pytest.mark.parametrize("noise", ["shared", "per_frame"])
def test_a_part_of_a_clip_gets_the_noise_it_has_in_the_whole(noise):
    backbone = Gaussian()
    clip = backbone.sample(frames=6)
    whole = noisy(backbone, clip, noise=noise, seed=3)
    part = noisy(backbone, clip[[4, 1]], noise=noise, seed=3, frames=(4, 1))
    assert torch.equal(all_levels(part), all_levels(whole)[:, [4, 1]])


def test_seeds_and_frames_do_not_collide():
    backbone = Gaussian()
    clip = backbone.sample(frames=2)
    first, second = (noisy(backbone, clip, noise="per_frame", seed=s).at(5) for s in (0, 1))
    assert not torch.equal(first[1], second[0])
    assert torch.equal(noisy(backbone, clip, seed=2**53).at(5), noisy(backbone, clip, seed=2**53).at(5))
    assert noisy(backbone, clip, noise="per_frame", seed=2**53).at(5).isfinite().all()


def test_an_edit_starts_from_it():
    backbone = Gaussian(prediction_type="v_prediction")
    clip = backbone.sample(frames=3)
    trajectory = noisy(backbone, clip, steps=20)
    assert edit(backbone, trajectory, backbone.text.embed("a red cat"), guidance=1.0).shape == clip.shape


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"noise": "pink"}, "no noise 'pink': want one of shared, per_frame"),
        ({"frames": (0, 1)}, r"want the numbers of these 3 frames in the whole clip, 0 or more, got \[0, 1\]"),
        ({"frames": (0, 1, -2)}, "0 or more"),
        ({"steps": 5000}, "want 1 to 1000 steps"),
    ],
)
def test_what_makes_no_sense_is_refused(options, match):
    backbone = Gaussian()
    with pytest.raises(ValueError, match=match):
        noisy(backbone, backbone.sample(), **options)


def test_a_prompt_of_another_model_is_refused():
    from dataclasses import replace

    backbone = Gaussian()
    with pytest.raises(ValueError, match="encoded by another model"):
        add_noise(backbone, backbone.sample(), replace(backbone.text.embed(""), encoder="other"))


def test_two_tensors_are_all_it_keeps_however_many_steps():
    """So there is no budget for it: shared noise takes that of one frame."""
    backbone = Gaussian()
    clip = backbone.sample(frames=6)
    for steps in (2, 500):
        shared, own = (noisy(backbone, clip, steps=steps, noise=noise) for noise in ("shared", "per_frame"))
        tensors = [v for v in vars(own).values() if isinstance(v, torch.Tensor)]
        assert sum(t.untyped_storage().nbytes() for t in tensors) == 2 * clip.nbytes
        assert shared.eps.untyped_storage().nbytes() == clip[0].nbytes
    clip.zero_()
    assert own.at(0).any()


def test_an_edit_may_start_from_it_with_another_network_of_its_schedule():
    backbone, other = Gaussian(), Gaussian()
    other.denoiser.fingerprint = "0123"
    trajectory = noisy(backbone, backbone.sample())
    assert edit(other, trajectory, other.text.embed("a red cat"), guidance=1.0).isfinite().all()


def test_the_clip_itself_is_a_source_without_noise(backbone):
    clip, prompt = backbone.sample(), backbone.text.embed("a dog")
    got = source_of(backbone, clip, prompt, 5)
    assert torch.equal(got.at(0), backbone.codec.scale(clip))
    assert (got.schedule, got.prompt, got.convention, got.model) == (
        backbone.denoiser.schedule(5), prompt, "clean", ""
    )  # fmt: skip
    for level in range(1, 6):
        assert torch.equal(got.at(level), got.schedule.signal[level] * got.at(0))
    with pytest.raises(ValueError, match=r"want latents \[F, 4, h, w\], got \[3, 4, 6\]"):
        source_of(backbone, clip[..., 0], prompt, 5)
