"""Measures of several sprites: the truth is right in all of them, and each kind of fault shows in its own."""

from dataclasses import replace

import pytest
import torch

from weft.toyworld import scenes, world
from weft.toyworld.measure_scenes import find_things, measure_scenes, scene_accuracy

N = 16
RIGHT = ("count_right", "color_accuracy", "shape_accuracy")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def blurred(video):
    kernel = torch.ones(3, 1, 3, 3) / 9
    padded = torch.nn.functional.pad(video.flatten(0, 1), (1,) * 4, mode="replicate")
    return torch.nn.functional.conv2d(padded, kernel, groups=3).view(video.shape)


@pytest.mark.parametrize("kind", scenes.EDITS)
def test_the_truth_of_every_edit_is_right_and_the_unedited_source_is_not(kind):
    source, target = scenes.draw_edits(kind, N, generator())
    scores = measure_scenes(scenes.render(target)[0], source, target)
    assert (scores["psnr_truth"] == 90).all()
    assert (scores["psnr_same"] == 90).all()
    assert (scores["count_right"] == 1).all()
    assert (scores["color_accuracy"] == 1).all()
    assert scores["shape_accuracy"].nanmean() >= 0.99
    assert scores["centroid_error_px"].nanmean() < 0.3
    untouched = measure_scenes(scenes.render(source)[0], source, target)
    assert (untouched["psnr_truth"] < 40).all()
    assert (untouched["psnr_same"] == 90).all()
    if kind in ("remove", "add"):
        assert untouched["count_right"].mean() < 0.2
    if kind in ("one of two", "both"):
        assert untouched["color_accuracy"].mean() < 0.7


def test_a_blurred_truth_is_still_right():
    source, target = scenes.draw_edits("both", N, generator())
    scores = measure_scenes(blurred(scenes.render(target)[0]), source, target)
    for name in RIGHT:
        assert scores[name].nanmean() >= 0.9, name


def test_a_wrong_shape_and_a_wrong_color_show_where_they_should():
    target = scenes.draw(N, generator(), (2,), ("apart",))
    wrong = scenes.change(target, generator(1), 0, ("shape",))
    scores = measure_scenes(scenes.render(wrong)[0], target, target)
    assert scores["shape_accuracy"].nanmean().item() == pytest.approx(0.5, abs=0.1)
    assert scores["color_accuracy"].mean() > 0.99
    wrong = scenes.change(target, generator(1), 0, ("color",))
    scores = measure_scenes(scenes.render(wrong)[0], target, target)
    assert scores["color_accuracy"].mean().item() == pytest.approx(0.5, abs=0.05)
    assert scores["count_right"].mean() > 0.99
    assert scores["shape_accuracy"].nanmean() < 0.6, "a missing sprite has no shape"


def test_a_sprite_elsewhere_is_as_far_as_it_is():
    target = scenes.draw(N, generator(), (1,))
    moved = replace(target, center=(target.center - 32) * 0.8 + 32)
    scores = measure_scenes(scenes.render(moved)[0], target, target)
    want = (target.center - moved.center)[:, 0].norm(dim=-1).mean(1)
    torch.testing.assert_close(scores["centroid_error_px"], want, atol=0.4, rtol=0)


def test_nothing_is_right_only_where_nothing_should_be():
    bare, one = scenes.draw(N, generator(), (0,)), scenes.draw(N, generator(), (1,))
    scores = measure_scenes(scenes.render(bare)[0], bare, bare)
    assert (scores["count_right"] == 1).all()
    assert (scores["color_accuracy"] == 1).all()
    assert scores["shape_accuracy"].isnan().all()
    shown = replace(bare, shown=one.shown)
    assert (measure_scenes(scenes.render(shown)[0], bare, bare)["color_accuracy"] == 0).all()
    missing = measure_scenes(scenes.render(bare)[0], shown, shown)
    assert (missing["count_right"] == 0).all()
    assert (missing["shape_accuracy"] == 0).all()
    assert (missing["centroid_error_px"] == 20).all()


def test_captions_are_judged_wherever_the_sprites_are():
    drawn = scenes.draw(N, generator())
    elsewhere = scenes.draw(N, generator(1))
    moved = replace(drawn, center=elsewhere.center, radius=elsewhere.radius, front=elsewhere.front)
    scores = scene_accuracy(scenes.render(moved)[0], drawn)
    assert scores["count_right"].mean() > 0.93  # a sprite may be hidden by the other in some frames
    assert scores["color_accuracy"].mean() > 0.96
    assert scores["shape_accuracy"].nanmean() > 0.98
    assert scores["background_accuracy"].mean() == scores["pattern_accuracy"].mean() == 1


def test_a_color_with_the_shape_of_the_other_is_wrong():
    drawn = scenes.draw(3 * N, generator(), (2,), ("apart",))
    drawn = drawn[drawn.shape[:, 0] != drawn.shape[:, 1]]
    swapped = replace(drawn, shape=drawn.shape.flip(1))
    assert scene_accuracy(scenes.render(drawn)[0], drawn)["shape_accuracy"].nanmean() > 0.98
    scores = scene_accuracy(scenes.render(swapped)[0], drawn)
    assert scores["shape_accuracy"].nanmean() < 0.02
    assert scores["color_accuracy"].mean() > 0.98


def test_things_are_found_by_color_and_thin_lines_are_none():
    drawn = scenes.draw(N, generator(), (2,), ("apart",))
    video, ground = scenes.render(drawn)[0], world.render_background(drawn.sprite(0))
    things = find_things(video, ground)
    want = torch.zeros_like(things.found).scatter(2, drawn.color[:, None].expand(-1, world.FRAMES, -1), True)
    assert (things.found == want).float().mean() > 0.99
    lined = ground[:, None].clone()
    lined[:, :, :, 30:32] = world.COLOR_VALUES[0][:, None, None]
    assert not find_things(lined, ground).found.any()


def test_a_video_that_does_not_fit_is_named():
    drawn = scenes.draw(2, generator())
    with pytest.raises(ValueError, match=r"want a video \[2, 8, 3, 64, 64\].*\[2, 4, 3, 64, 64\]"):
        measure_scenes(torch.zeros(2, 4, 3, 64, 64), drawn, drawn)
