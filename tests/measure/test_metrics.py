import json
import math
import sys

import pytest
import torch
import torch.nn.functional as F

from weft.engine.monitor import Monitor
from weft.measure import METRICS
from weft.measure.flicker import flicker
from weft.measure.metric import Clips, Metric, evaluate
from weft.measure.psnr import CAP, psnr
from weft.measure.ssim import ssim

ALWAYS = {"psnr_source", "ssim_source", "flicker_source", "flicker_edit"}


def figures(source, edit, **more):
    return evaluate(Clips(source, edit, **more), METRICS).values


@pytest.fixture
def clip():
    return torch.rand(3, 12, 14, 3)


def test_a_clip_against_itself(clip):
    got = figures(clip, clip.clone(), reference=clip)
    assert got["psnr_source"] == got["psnr_reference"] == CAP
    assert got["ssim_source"] == got["ssim_reference"] == pytest.approx(1, abs=1e-6)
    assert got["flicker_source"] == got["flicker_edit"] > 0
    assert set(got) == ALWAYS | {"psnr_reference", "ssim_reference"}


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
    mask = torch.zeros(frames, 12, 14)
    mask[:, 1, 2:4] = 0.5  # half counts, less does not
    mask[:, 0, 0] = 0.4
    changed = clip.clone()
    changed[:, 1, 2:4] += 0.1
    got = figures(clip, changed, mask=mask)
    assert got["psnr_background"] == CAP
    assert got["psnr_edited"] == pytest.approx(20, abs=1e-3)
    changed[:, 0] += 0.01
    background = 12 * 14 - 2  # pixels outside the mask; 14 of each frame changed
    want = -10 * math.log10(1e-4 * 14 / background)
    assert figures(clip, changed, mask=mask)["psnr_background"] == pytest.approx(want, abs=1e-3)


def test_a_mask_per_frame_follows_the_thing(clip):
    mask = torch.zeros(3, 12, 14)
    changed = clip.clone()
    for frame in range(3):
        mask[frame, :, frame] = 1
        changed[frame, :, frame] = 0
    assert figures(clip, changed, mask=mask)["psnr_background"] == CAP
    assert figures(clip, changed, mask=mask[:1])["psnr_background"] < CAP


def test_ssim_is_wangs_formula():
    """Every pixel by itself, in float64: means, variances and covariance under the paper's Gaussian window."""
    a = torch.rand(2, 16, 13, 3, dtype=torch.float64)
    b = (a + 0.1 * torch.randn(a.shape, dtype=torch.float64)).clamp(0, 1)
    line = torch.exp(-((torch.arange(11) - 5).double() ** 2) / (2 * 1.5**2))
    window = line[:, None] * line / line.sum() ** 2
    total, c1, c2 = [], 0.01**2, 0.03**2
    for x, y in zip(a.movedim(-1, 1).flatten(0, 1), b.movedim(-1, 1).flatten(0, 1)):
        x, y = (F.pad(v[None, None], (5, 5, 5, 5), mode="reflect")[0, 0] for v in (x, y))
        for i in range(16):
            for j in range(13):
                p, q = x[i : i + 11, j : j + 11], y[i : i + 11, j : j + 11]
                mp, mq = (window * p).sum(), (window * q).sum()
                vp, vq = (window * (p - mp) ** 2).sum(), (window * (q - mq) ** 2).sum()
                cov = (window * (p - mp) * (q - mq)).sum()
                total.append((2 * mp * mq + c1) * (2 * cov + c2) / ((mp**2 + mq**2 + c1) * (vp + vq + c2)))
    assert ssim(a, b) == pytest.approx(torch.stack(total).mean().item(), abs=1e-4)


def test_flicker_is_the_mean_change_between_frames():
    moving = torch.zeros(3, 4, 6, 3)
    moving[1] = 0.5
    assert flicker(torch.zeros(3, 4, 6, 3)) == 0
    assert flicker(moving) == pytest.approx(0.5)
    assert flicker(moving[:1]) == 0
    assert flicker(moving.half()) == pytest.approx(0.5)


def test_the_reference_is_compared_with_the_edit(clip):
    got = figures(clip, clip + 0.1, reference=clip + 0.2)
    assert [got[k] for k in ("psnr_source", "psnr_reference")] == pytest.approx([20, 20], abs=1e-3)
    assert figures(clip, clip + 0.1, reference=clip + 0.1)["psnr_reference"] == CAP


def test_figures_as_text_are_one_a_line_with_their_unit():
    table = (Metric("psnr_source", lambda *_: 20.0, unit="dB", digits=2), Metric("flicker_edit", lambda *_: 0.123))
    got = evaluate(Clips(*torch.zeros(2, 1, 2, 2, 3)), table)
    assert got.text.splitlines() == ["psnr_source        20.00 dB", "flicker_edit      0.1230"]
    assert json.loads(got.json) == {"psnr_source": 20.0, "flicker_edit": 0.123}


def test_clips_that_cannot_be_compared_are_refused(clip):
    def refused(match, *clips, **more):
        with pytest.raises(ValueError, match=match):
            Clips(*clips, **more)

    refused(r"the edit is \[2, 12, 14, 3\] and the source \[3, 12, 14, 3\]: compare clips of the same", clip, clip[:2])
    refused(r"the edit is \[3, 12, 5, 3\] and the source \[3, 12, 14, 3\]", clip, clip[:, :, :5])
    refused(r"the reference is \[3, 2, 14, 3\] and the source \[3, 12, 14, 3\]", clip, clip, reference=clip[:, :2])
    refused(r"want source frames \[F, H, W, 3\], got \[12, 14, 3\]", clip[0], clip[0])
    refused(r"want source frames \[F, H, W, 3\], got \[0, 12, 14, 3\]", clip[:0], clip[:0])
    refused(r"want edit frames \[F, H, W, 3\], got \[3, 12, 14, 1\]", clip, clip[..., :1])
    refused(r"want a mask \[3, 12, 14\] or one frame of it, got \[2, 12, 14\]", clip, clip, mask=torch.ones(2, 12, 14))
    refused(r"want a mask \[3, 12, 14\] or one frame of it, got \[3, 14, 12\]", clip, clip, mask=torch.ones(3, 14, 12))
    refused(r"want a mask \[3, 12, 14\] or one frame of it, got \[12, 14\]", clip, clip, mask=torch.ones(12, 14))
    with pytest.raises(ValueError, match="shorter"):
        psnr(clip, clip[:2])
    with pytest.raises(ValueError, match="shorter"):
        ssim(clip, clip[:2])


def nan(*shape):
    """Zeros, and one NaN in the last frame."""
    values = torch.zeros(shape)
    values[-1].view(-1)[0] = float("nan")
    return values


@pytest.mark.parametrize(
    ("inputs", "left_out", "reason"),
    [
        ({"mask": torch.ones(1, 12, 14)}, {"psnr_background"}, "the mask covers everything or nothing"),
        ({"mask": torch.zeros(3, 12, 14)}, {"psnr_edited"}, "the mask covers everything or nothing"),
        ({"mask": nan(3, 12, 14)}, {"psnr_background", "psnr_edited"}, "the mask of frame 2 holds NaN or infinity"),
        ({"reference": nan(3, 12, 14, 3)}, {"psnr_reference", "ssim_reference"}, "frame 2 of the reference holds NaN"),
        ({"edit": nan(3, 12, 14, 3)}, ALWAYS - {"flicker_source"}, "frame 2 of the edit holds NaN"),
    ],
    ids=["all masked", "nothing masked", "NaN in the mask", "NaN in the reference", "NaN in the edit"],
)
def test_what_cannot_be_computed_is_left_out_and_the_rest_is_told(clip, inputs, left_out, reason, caplog):
    got = evaluate(Clips(**{"source": clip, "edit": clip, **inputs}), METRICS)
    assert set(got.left_out) == left_out
    assert set(got.values) >= ALWAYS - left_out
    assert not set(got.values) & left_out
    for name in left_out:
        assert reason in got.left_out[name]
        assert f"{name:<16} left out: {got.left_out[name]}" in got.text.splitlines()
        assert name in caplog.text
    assert json.loads(got.json)["left_out"] == got.left_out
    assert all(map(math.isfinite, got.values.values()))


def test_small_pictures_have_no_ssim_and_all_else():
    small = torch.rand(2, 4, 12, 3)
    got = evaluate(Clips(small, small), METRICS)
    assert got.left_out == {"ssim_source": "its window is 11x11 pixels, and the pictures are 12x4"}
    assert set(got.values) == ALWAYS - {"ssim_source"}


def test_a_missing_package_is_named(clip, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchmetrics.image", None)
    got = evaluate(Clips(clip, clip), METRICS)
    assert set(got.left_out) == {"psnr_source", "ssim_source"}
    assert "torchmetrics" in got.left_out["psnr_source"]
    assert "requirements.txt" in got.left_out["psnr_source"]


def test_what_is_no_number_is_no_figure(clip):
    got = evaluate(Clips(clip, clip), [Metric("odd", lambda *_: math.nan), Metric("endless", lambda *_: math.inf)])
    assert got.values == {}
    assert got.left_out == {"odd": "it comes out as nan", "endless": "it comes out as inf"}
    assert json.loads(got.json, parse_constant=pytest.fail)  # NaN is no JSON


def test_other_failures_are_not_hidden(clip):
    def out_of_memory(*_):
        raise torch.OutOfMemoryError("full")

    with pytest.raises(torch.OutOfMemoryError):
        evaluate(Clips(clip, clip), [Metric("big", out_of_memory)])


class Cancelled(Exception):
    pass


class Watching(Monitor):
    def __init__(self, cancel_after=math.inf):
        self.checks, self.cancel_after, self.done = 0, cancel_after, []

    def check(self):
        self.checks += 1
        if self.checks > self.cancel_after:
            raise Cancelled

    def progress(self, done, total, preview=None):
        self.done.append((done, total))


def test_progress_is_told_and_cancel_asked_at_every_frame(clip):
    inputs = Clips(clip, clip, torch.rand(3, 12, 14).round(), clip)
    evaluate(inputs, METRICS, watching := Watching())
    assert {total for _, total in watching.done} == {len(METRICS) * 3}
    told = [done for done, _ in watching.done]
    assert told == sorted(told)
    assert set(told) == set(range(1, len(METRICS) * 3 + 1))  # every frame of every metric
    assert watching.checks >= len(METRICS) + 6 * 3 + 2 * 2  # flicker has a pair of frames less
    for after in range(0, watching.checks, 5):
        with pytest.raises(Cancelled):
            evaluate(inputs, METRICS, Watching(after))


def test_every_figure_has_a_name_of_its_own():
    names = [metric.name for metric in METRICS]
    assert len(set(names)) == len(names)
