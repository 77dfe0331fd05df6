import math

import pytest
import torch

from weft.measure.evaluate import CAP, as_text, evaluate_edit, psnr


@pytest.fixture
def clip():
    return torch.rand(3, 4, 6, 3)


def test_a_clip_against_itself(clip):
    figures = evaluate_edit(clip, clip.clone(), reference=clip)
    assert figures["psnr_source"] == figures["psnr_reference"] == CAP
    assert figures["flicker_source"] == figures["flicker_edit"] > 0
    assert set(figures) == {"psnr_source", "psnr_reference", "flicker_source", "flicker_edit"}


@pytest.mark.parametrize(("off", "decibel"), [(0.1, 20.0), (0.01, 40.0), (1.0, 0.0)])
def test_psnr_is_ten_decibel_for_each_tenth_of_the_squared_error(off, decibel):
    assert psnr(torch.full((2, 4, 6, 3), off), torch.zeros(2, 4, 6, 3)) == pytest.approx(decibel, abs=1e-4)


def test_psnr_is_over_all_pixels_and_frames(clip):
    changed = clip.clone()
    changed[1, 2, 3, 0] += 0.5
    want = -10 * math.log10(0.25 / clip.numel())
    assert psnr(changed, clip) == pytest.approx(want, abs=1e-3)
    assert psnr(clip, changed) == pytest.approx(want, abs=1e-3)


@pytest.mark.parametrize("frames", [1, 3])
def test_a_mask_parts_the_edit_from_its_background(clip, frames):
    mask = torch.zeros(frames, 4, 6)
    mask[:, 1, 2:4] = 0.5  # half counts, less does not
    mask[:, 0, 0] = 0.4
    changed = clip.clone()
    changed[:, 1, 2:4] += 0.1
    figures = evaluate_edit(clip, changed, mask=mask)
    assert figures["psnr_background"] == CAP
    assert figures["psnr_edited"] == pytest.approx(20, abs=1e-3)
    changed[:, 0] += 0.01
    figures = evaluate_edit(clip, changed, mask=mask)
    background = 3 * 22 * 3  # values outside the mask; 18 of each frame changed
    assert figures["psnr_background"] == pytest.approx(-10 * math.log10(1e-4 * 54 / background), abs=1e-3)


def test_a_mask_per_frame_follows_the_thing(clip):
    mask = torch.zeros(3, 4, 6)
    changed = clip.clone()
    for frame in range(3):
        mask[frame, :, frame] = 1
        changed[frame, :, frame] = 0
    assert evaluate_edit(clip, changed, mask=mask)["psnr_background"] == CAP
    assert evaluate_edit(clip, changed, mask=mask[:1])["psnr_background"] < CAP


def test_flicker_is_the_mean_change_between_frames():
    still, moving = torch.zeros(3, 4, 6, 3), torch.zeros(3, 4, 6, 3)
    moving[1] = 0.5
    figures = evaluate_edit(still, moving)
    assert figures["flicker_source"] == 0
    assert figures["flicker_edit"] == pytest.approx(0.5)
    assert evaluate_edit(still[:1], moving[:1])["flicker_edit"] == 0


def test_the_reference_is_compared_with_the_edit(clip):
    figures = evaluate_edit(clip, clip + 0.1, reference=clip + 0.2)
    assert [figures[k] for k in ("psnr_source", "psnr_reference")] == pytest.approx([20, 20], abs=1e-3)
    assert evaluate_edit(clip, clip + 0.1, reference=clip + 0.1)["psnr_reference"] == CAP


def test_figures_as_text_are_one_a_line_with_their_unit():
    lines = as_text({"psnr_source": 20.0, "flicker_edit": 0.123}).splitlines()
    assert lines == ["psnr_source        20.00 dB", "flicker_edit      0.1230"]


def test_clips_that_cannot_be_compared_are_refused(clip):
    def refused(match, *clips, **more):
        with pytest.raises(ValueError, match=match):
            evaluate_edit(*clips, **more)

    refused(r"the edit is \[2, 4, 6, 3\] and the source \[3, 4, 6, 3\]: compare clips of the same", clip, clip[:2])
    refused(r"the edit is \[3, 4, 5, 3\] and the source \[3, 4, 6, 3\]", clip, clip[:, :, :5])
    refused(r"the reference is \[3, 2, 6, 3\] and the source \[3, 4, 6, 3\]", clip, clip, reference=clip[:, :2])
    refused(r"want source frames \[F, H, W, 3\], got \[4, 6, 3\]", clip[0], clip[0])
    refused(r"want edit frames \[F, H, W, 3\], got \[3, 4, 6, 1\]", clip, clip[..., :1])
    spoiled = clip.clone()
    spoiled[0, 0, 0, 0] = float("nan")
    refused("the edit holds NaN or infinity", clip, spoiled)
    refused("the reference holds NaN or infinity", clip, clip, reference=clip / 0)


def test_masks_that_do_not_fit_are_refused(clip):
    def refused(match, mask):
        with pytest.raises(ValueError, match=match):
            evaluate_edit(clip, clip, mask=mask)

    refused(r"want a mask \[3, 4, 6\] or one frame of it, got \[2, 4, 6\]", torch.ones(2, 4, 6))
    refused(r"want a mask \[3, 4, 6\] or one frame of it, got \[3, 6, 4\]", torch.ones(3, 6, 4))
    refused(r"want a mask \[3, 4, 6\] or one frame of it, got \[4, 6\]", torch.ones(4, 6))
    refused("no pixels to compare: the mask covers everything or nothing", torch.ones(1, 4, 6))
    refused("no pixels to compare: the mask covers everything or nothing", torch.zeros(3, 4, 6))
    refused("the mask holds NaN or infinity", torch.full((3, 4, 6), float("nan")))
