"""Whether a clip hangs together: the truth does, and each kind of fault shows in its own measure."""

import torch

from weft.toyworld import scenes
from weft.toyworld.steadiness import steadiness

N = 6


def drawn(count):
    return scenes.draw(N, torch.Generator().manual_seed(1), (count,), ("apart",))


def means(video, scene):
    return {name: values[~values.isnan()].mean().item() for name, values in steadiness(video, scene).items()}


def test_the_truth_is_steady_and_frames_out_of_order_are_not():
    scene = drawn(2)
    video = scenes.render(scene)[0]
    true = means(video, scene)
    assert true["twice"] == 0
    assert true["flicker"] < 0.1
    shuffled = means(video[:, [3, 0, 6, 1, 7, 2, 5, 4]], scene)
    assert shuffled["bend_px"] > 3 * true["bend_px"]


def test_a_sprite_that_is_there_twice_is_seen():
    scene = drawn(1)
    video, ground = scenes.render(scene)[0], scenes.render(scenes.remove(scene, 0))[0]
    sprite = (video - ground).abs().amax(2, keepdim=True) > 0.05
    again = torch.where(sprite.roll(32, -1), video.roll(32, -1), video)  # the same sprite, half a picture further
    assert means(video, scene)["twice"] == 0
    assert means(again, scene)["twice"] > 0.5


def test_a_background_that_changes_flickers():
    scene = drawn(1)
    video = scenes.render(scene)[0]
    lit = video + 0.02 * (torch.arange(video.shape[1]) % 2)[:, None, None, None]
    assert abs(means(lit, scene)["flicker"] - 0.02 * 255) < 0.5


def test_what_cannot_be_asked_is_nan():
    scene = drawn(0)
    scores = steadiness(scenes.render(scene)[0][:, :1], scene)
    assert all(values.isnan().all() for values in scores.values())
