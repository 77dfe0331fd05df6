from dataclasses import replace

import pytest
import torch

from weft.toyworld import world
from weft.toyworld.motion import correspondences, warp_error

BLUR = 0.5  # levels of 255: rounding of the linear reading


@pytest.fixture
def clips():
    return world.draw(12, torch.Generator().manual_seed(7))


@pytest.fixture
def video(clips):
    return world.render(clips)[0]


def test_the_renderer_moves_exactly_as_its_clips(video, clips):
    assert warp_error(video, clips).max() < BLUR


@pytest.mark.parametrize("where", ["all", "sprite", "background"])
def test_shuffled_frames_do_not(video, clips, where):
    shuffled = video[:, [3, 0, 6, 1, 7, 4, 2, 5]]
    if where == "background":  # covered and uncovered
        assert (warp_error(shuffled, clips, where) > 5).float().mean() > 0.5
    else:
        assert warp_error(shuffled, clips, where).min() > 10


def test_a_sprite_that_stands_still_is_wrong_on_the_sprite(clips):
    still = replace(clips, center=clips.center[:, :1].expand_as(clips.center))
    video = world.render(still)[0]
    assert warp_error(video, clips, "sprite").median() > 10


def test_flicker_scores_its_own_size(video, clips):
    """Noise that is independent from frame to frame: twice its variance on the background."""
    level = 8 / 255
    noisy = video + level * torch.randn(video.shape, generator=torch.Generator().manual_seed(0))
    error = warp_error(noisy, clips, "background")
    torch.testing.assert_close(error, torch.full_like(error, 8 * 2**0.5), rtol=0.02, atol=0)


def test_a_flash_of_one_frame_is_seen_on_both_sides(video, clips):
    flashed = video.clone()
    flashed[:, 3] += 0.1
    error = warp_error(flashed, clips)
    torch.testing.assert_close(error, torch.full_like(error, 25.5 * (2 / 7) ** 0.5), rtol=0.05, atol=0)


def test_another_color_on_the_same_path_is_no_error(clips):
    edited = world.edit(clips, torch.Generator().manual_seed(0), ("color",))
    assert warp_error(world.render(edited)[0], clips).max() < BLUR


def test_correspondences_follow_the_sprite_and_leave_the_background(clips):
    motion, visible = correspondences(clips)
    sprite = world.sprite_alpha(clips) >= 0.5
    at = sprite[:, :-1]
    assert motion.shape == (12, 7, 64, 64, 2)
    step = clips.center.diff(dim=1)[:, :, None, None].expand_as(motion)
    assert torch.equal(motion[at], step[at])
    assert not motion[~at].any()
    assert visible[at].all()
    assert torch.equal(visible[~at], ~sprite[:, 1:][~at])


def test_corresponding_pixels_look_alike(video, clips):
    """Rounded to whole pixels, away from the sprite's rim."""
    motion, visible = correspondences(clips)
    alpha = world.sprite_alpha(clips)
    x, y = world.pixel_grid()
    there = (torch.stack([x, y], -1) + motion - 0.5).round().long().clamp(0, world.SIZE - 1)
    n, f = torch.meshgrid(torch.arange(12), torch.arange(1, 8), indexing="ij")
    at = n[..., None, None], f[..., None, None], slice(None), there[..., 1], there[..., 0]
    solid = (alpha[:, :-1] == 1) & (alpha[at[0], at[1], at[3], at[4]] == 1)
    plain = (alpha[:, :-1] == 0) & (alpha[:, 1:] == 0)
    here = video[:, :-1].movedim(2, -1)
    assert ((video[at] - here).abs().amax(-1)[(solid | plain) & visible] < 1e-5).all()


@pytest.mark.parametrize(
    ("shape", "match"),
    [((12, 7, 3, 64, 64), "want a video"), ((11, 8, 3, 64, 64), "want a video"), ((12, 8, 3, 32, 32), "want a video")],
)
def test_other_videos_are_refused(clips, shape, match):
    with pytest.raises(ValueError, match=match):
        warp_error(torch.zeros(shape), clips)


def test_unknown_pixels_and_single_frames_are_refused(video, clips):
    with pytest.raises(ValueError, match="no pixels 'rim'"):
        warp_error(video, clips, "rim")
    with pytest.raises(ValueError, match="at least 2 frames"):
        warp_error(video[:, :1], replace(clips, center=clips.center[:, :1]))
