import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from weft.toyworld import world
from weft.toyworld.measure import PSNR_CAP, consistency, measure, psnr, sample_accuracy


def draw(n, seed=4321, **options):
    return world.draw(n, torch.Generator().manual_seed(seed), **options)


def pair(*attributes, n=24):
    source = draw(n)
    return source, world.edit(source, torch.Generator().manual_seed(1), attributes or ("shape", "color"))


def noisy(video, strength):
    return (video + strength * torch.randn_like(video)).clamp(0, 1)


def blurred(video, sigma=1.0):
    """What a VAE of few channels leaves of sharp edges, roughly."""
    kernel = torch.exp(-(torch.arange(-3, 4) ** 2) / (2 * sigma**2))
    kernel = torch.outer(kernel, kernel)
    weight = (kernel / kernel.sum()).expand(3, 1, 7, 7)
    x = F.pad(video.flatten(0, 1), (3,) * 4, mode="reflect")
    return F.conv2d(x, weight, groups=3).unflatten(0, video.shape[:2])


# ---- edits -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attributes", [("shape", "color"), ("color",), ("background", "pattern")])
def test_the_truth_is_perfect(attributes):
    source, target = pair(*attributes)
    scores = measure(world.render(target)[0], source, target)
    for name in ("color_accuracy", "shape_accuracy", "target_accuracy"):
        assert (scores[name] == 1).all()
    assert (scores["missing"] == 0).all()
    assert (scores["psnr_truth"] == PSNR_CAP).all()
    assert (scores["psnr_background"] == PSNR_CAP).all()
    assert (scores["psnr_source"] < 35).all()
    assert scores["centroid_error_px"].mean() < 0.3
    assert scores["velocity_error_px"].mean() < 0.3
    assert {tuple(values.shape) for values in scores.values()} == {(len(source),)}


@pytest.mark.parametrize("spoil", [lambda v: noisy(v, 0.05), lambda v: noisy(blurred(v), 0.02)], ids=["noise", "blur"])
def test_the_truth_survives_small_damage(spoil):
    source, target = pair()
    scores = measure(spoil(world.render(target)[0]), source, target)
    assert scores["target_accuracy"].mean() >= 0.98
    assert scores["missing"].max() == 0
    assert scores["centroid_error_px"].mean() < 0.3
    assert scores["psnr_truth"].max() < 40


def test_the_unedited_source_is_wrong_only_where_the_edit_was_asked():
    source, target = pair()
    scores = measure(world.render(source)[0], source, target)
    assert (scores["psnr_source"] == PSNR_CAP).all()
    assert (scores["psnr_background"] == PSNR_CAP).all()
    assert scores["psnr_truth"].max() < 30
    for name in ("color_accuracy", "shape_accuracy", "target_accuracy"):
        assert (scores[name] == 0).all()
    assert scores["centroid_error_px"].mean() < 1

    source, target = pair("color")
    scores = measure(world.render(source)[0], source, target)
    assert (scores["shape_accuracy"] == 1).all()
    assert (scores["color_accuracy"] == 0).all()
    assert (scores["target_accuracy"] == 0).all()


def test_an_attribute_the_edit_keeps_must_be_kept():
    source, target = pair("color")
    wrong = world.edit(target, torch.Generator().manual_seed(2), ("shape",))
    scores = measure(world.render(wrong)[0], source, target)
    assert (scores["color_accuracy"] == 1).all()
    assert (scores["shape_accuracy"] == 0).all()
    assert (scores["target_accuracy"] == 0).all()


def test_frames_without_a_sprite_cost_what_they_should():
    source, target = pair(n=6)
    video, background = world.render(target)[0], world.render_background(target)
    video[:3] = background[:3, None]
    video[3, :2] = background[3]
    scores = measure(video, source, target)
    assert scores["missing"].tolist() == [1, 1, 1, 0.25, 0, 0]
    assert scores["target_accuracy"].tolist() == [0, 0, 0, 0.75, 1, 1]
    assert scores["centroid_error_px"][:3].tolist() == [20, 20, 20]
    assert 5 < scores["centroid_error_px"][3] < 5.5
    assert scores["velocity_error_px"][:3].tolist() == [8, 8, 8]
    assert scores["velocity_error_px"][3:].max() < 0.5


def test_motion_errors_are_in_pixels():
    target = draw(12)
    shift = torch.tensor([3.0, 4.0])
    inside = world.SIZE - 1 - target.radius[:, None, None]
    keep = ((target.center + shift) <= inside).flatten(1).all(1)
    target = target[keep]
    assert len(target), "no path leaves room for the shift"
    moved = replace(target, center=target.center + shift)
    scores = measure(world.render(moved)[0], target, target)
    torch.testing.assert_close(scores["centroid_error_px"], torch.full((len(target),), 5.0), atol=0.3, rtol=0)
    assert scores["velocity_error_px"].max() < 0.4

    still = replace(target, center=target.center[:, :1].expand_as(target.center))
    speed = target.center.diff(dim=1).abs().mean((1, 2))
    scores = measure(world.render(still)[0], target, target)
    torch.testing.assert_close(scores["velocity_error_px"], speed, atol=0.4, rtol=0)


def test_the_background_is_judged_away_from_both_sprites():
    source, target = pair(n=4)
    video = world.render(target)[0]
    alpha = torch.maximum(world.sprite_alpha(source), world.sprite_alpha(target))
    near = F.max_pool2d((alpha > 0).float(), 5, 1, 2)[:, :, None]
    assert (measure((video + near).clamp(0, 1), source, target)["psnr_background"] == PSNR_CAP).all()
    far = measure((video + 0.1 * (1 - near)).clamp(0, 1), source, target)["psnr_background"]
    torch.testing.assert_close(far, torch.full((4,), 20.0), atol=0.01, rtol=0)


def test_half_precision_and_gradients_are_taken():
    source, target = pair(n=2)
    scores = measure(world.render(target)[0].half().requires_grad_(), source, target)
    assert (scores["target_accuracy"] == 1).all()
    assert not scores["psnr_truth"].requires_grad


def test_psnr_is_that_of_the_formula():
    a, b = torch.rand(3, 2, 3, 4, 4), torch.rand(3, 2, 3, 4, 4)
    want = [10 * math.log10(1 / (a[i] - b[i]).square().mean()) for i in range(3)]
    torch.testing.assert_close(psnr(a, b), torch.tensor(want))
    weight = torch.zeros(3, 2, 1, 4, 4)
    weight[:, :, :, 0, 0] = 1
    torch.testing.assert_close(psnr(a, b, weight), psnr(a[..., :1, :1], b[..., :1, :1]))


def test_clips_that_do_not_fit_are_refused():
    source, target = pair(n=3)
    video = world.render(target)[0]
    with pytest.raises(ValueError, match=r"want a video \[3, 8, 3, 64, 64\].* got \[3, 7, 3, 64, 64\]"):
        measure(video[:, :7], source, target)
    with pytest.raises(ValueError, match=r"want a video \[2, 8"):
        measure(video, source[:2], target[:2])
    with pytest.raises(ValueError, match=r"source paths \[2, 8, 2\]"):
        measure(video, source[:2], target)
    with pytest.raises(ValueError, match=r"want a video \[3, 8, 3, 64, 64\].* got \[3, 8, 3, 32, 32\]"):
        sample_accuracy(video[..., :32, :32], target)


# ---- samples ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spoil", [lambda v: noisy(v, 0.05), lambda v: noisy(blurred(v), 0.02)], ids=["noise", "blur"])
def test_samples_are_judged_without_their_path_or_phase(spoil):
    clips = draw(64)
    scores = sample_accuracy(spoil(world.render(clips)[0]), clips)
    for name in ("color_accuracy", "shape_accuracy", "background_accuracy", "pattern_accuracy"):
        assert scores[name].mean() >= 0.98, name
    elsewhere = draw(64, seed=5)  # the same captions on other paths
    drawn = replace(elsewhere, **{name: getattr(clips, name) for name in world.CHOICES})
    scores = sample_accuracy(spoil(world.render(drawn)[0]), clips)
    assert scores["target_accuracy"].mean() >= 0.98


@pytest.mark.parametrize("name", world.CHOICES)
def test_samples_of_another_caption_are_wrong_in_what_differs(name):
    clips = draw(24)
    other = world.edit(clips, torch.Generator().manual_seed(1), (name,))
    scores = sample_accuracy(world.render(other)[0], clips)
    for attribute in world.CHOICES:
        assert (scores[f"{attribute}_accuracy"] == (attribute != name)).all(), attribute


def test_single_frames_and_long_clips_can_be_judged():
    for frames in (1, 16):
        clips = draw(24, frames=frames)
        scores = sample_accuracy(noisy(world.render(clips)[0], 0.02), clips)
        assert scores["target_accuracy"].mean() >= 0.98
        assert scores["pattern_accuracy"].mean() >= 0.95


# ---- consistency -----------------------------------------------------------------------------------------------------


def recolored(clips, colors):
    """Clips whose frames show the sprite in these colors, one a frame."""
    parts = [world.render(replace(clips, color=torch.full_like(clips.color, c)))[0][:, f] for f, c in enumerate(colors)]
    return torch.stack(parts, 1)


def reshaped(clips, shapes):
    parts = [world.render(replace(clips, shape=torch.full_like(clips.shape, s)))[0][:, f] for f, s in enumerate(shapes)]
    return torch.stack(parts, 1)


def test_a_sprite_that_stays_the_same_is_consistent():
    clips = world.draw(6, torch.Generator().manual_seed(3))
    spread = consistency(world.render(clips)[0], clips)
    assert spread["color_spread"].max() < 1e-5
    assert spread["shape_spread"].max() < 0.12


def test_a_sprite_of_several_colors_is_not():
    clips = world.draw(6, torch.Generator().manual_seed(3))
    video = recolored(clips, [0, 2] * (world.FRAMES // 2))
    red, blue = world.COLOR_VALUES[[0, 2]]
    want = ((red - blue) / 2).square().mean().sqrt()
    got = consistency(video, clips)["color_spread"]
    torch.testing.assert_close(got, want.expand(6), rtol=0, atol=1e-5)


def test_a_sprite_of_several_shapes_is_not():
    clips = world.draw(6, torch.Generator().manual_seed(3))
    steady = consistency(reshaped(clips, [3] * world.FRAMES), clips)["shape_spread"]
    once = consistency(reshaped(clips, [3] * (world.FRAMES - 1) + [1]), clips)["shape_spread"]
    often = consistency(reshaped(clips, [3, 1] * (world.FRAMES // 2)), clips)["shape_spread"]
    assert (once > steady + 0.01).all()
    assert (often > once).all()


def test_a_sprite_that_is_gone_counts_against_its_shape():
    clips = world.draw(2, torch.Generator().manual_seed(3))
    video, background = world.render(clips)[0], world.render_background(clips)
    whole = consistency(video, clips)
    video[:, 0] = background
    less = consistency(video, clips)
    assert (less["shape_spread"] > whole["shape_spread"] + 0.1).all()
    gone = consistency(background[:, None].expand_as(video), clips)
    assert gone["color_spread"].tolist() == [0.5, 0.5]
    assert gone["shape_spread"].tolist() == [1.0, 1.0]


def test_a_background_that_changes_is_measured_away_from_the_sprite():
    clips = world.draw(4, torch.Generator().manual_seed(3))
    video = world.render(clips)[0]
    assert consistency(video, clips)["background_spread"].max() < 1e-5
    flicker = video + torch.tensor([0.1, -0.1] * (world.FRAMES // 2)).view(1, -1, 1, 1, 1)
    got = consistency(flicker.clamp(0, 1), replace(clips, background=clips.background))["background_spread"]
    assert ((got > 0.05) & (got < 0.11)).all()
    moved = video.clone()
    alpha = world.sprite_alpha(clips)[:, :, None]
    moved[(alpha > 0).expand_as(video)] = 0.0  # the sprite alone
    assert consistency(moved, clips)["background_spread"].max() < 1e-5
