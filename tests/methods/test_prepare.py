import pytest
import torch

from weft.engine.words import Layout
from weft.methods.prepare import prepare, restore


@pytest.mark.parametrize("way", ["crop", "pad"])
@pytest.mark.parametrize("size", [(37, 51), (64, 48), (8, 9)])
def test_what_is_put_back_unedited_is_the_clip(way, size):
    clip = torch.rand(5, *size, 3)
    fitted, fit = prepare(clip, way=way)
    assert all(n % 8 == 0 for n in fitted.shape[1:3])
    assert torch.equal(restore(fitted, clip, fit), clip)


def test_a_crop_leaves_the_edges_alone():
    clip = torch.rand(2, 20, 27, 3)
    fitted, fit = prepare(clip)
    back = restore(torch.zeros_like(fitted), clip, fit)
    top, left = fit.corner
    inside = torch.zeros(20, 27, dtype=torch.bool)
    inside[top : top + 16, left : left + 24] = True
    assert (back[:, inside] == 0).all()
    assert torch.equal(back[:, ~inside], clip[:, ~inside])


@pytest.mark.parametrize(("rule", "want"), [("any", 12), ("4k+1", 9), ("8k+1", 9)])
def test_frames_are_those_the_model_takes(rule, want):
    clip = torch.arange(30.0)[:, None, None, None].expand(30, 8, 8, 3)
    fitted, fit = prepare(clip, start=3, frames=12, every=2, rule=rule)
    assert fit.frames == tuple(range(3, 3 + 2 * want, 2))
    assert fitted[:, 0, 0, 0].tolist() == list(fit.frames)


def test_the_longer_side_is_as_asked_and_comes_back():
    clip = torch.rand(2, 120, 90, 3)
    fitted, fit = prepare(clip, side=64, multiple=16)
    assert fitted.shape[1:3] == (64, 48)
    assert restore(fitted, clip, fit).shape == clip.shape


@pytest.mark.parametrize(
    ("numbers", "said"),
    [
        ({"start": 4}, "want a start in the clip's 4 frames"),
        ({"side": 4}, "less than 8"),
        ({"way": "bend"}, "crop or pad"),
    ],
)
def test_what_cannot_be_is_refused(numbers, said):
    with pytest.raises(ValueError, match=said):
        prepare(torch.rand(4, 16, 16, 3), **numbers)


def test_an_edit_or_clip_of_something_else_is_refused():
    clip = torch.rand(4, 20, 20, 3)
    fitted, fit = prepare(clip)
    with pytest.raises(ValueError, match="connect the edit of what Prepare Clip gave"):
        restore(fitted[1:], clip, fit)
    with pytest.raises(ValueError, match="not the clip that was prepared"):
        restore(fitted, clip[:, 1:], fit)


@pytest.mark.parametrize(
    ("takes", "count", "whole"),
    [(Layout(16, 4, True), 11, 13), (Layout(32, 8, True), 11, 17), (Layout(16, 4, True, again=5, last=2), 11, 22)],
    ids=["Wan", "LTX", "H3"],
)
def test_a_clip_is_filled_up_to_what_a_model_takes_and_comes_back(takes, count, whole):
    clip = torch.rand(count, 37, 51, 3)
    fitted, fit = prepare(clip, way="pad", takes=takes)
    assert len(fitted) == whole == takes.fitting(whole)
    assert all(n % takes.pixels == 0 for n in fitted.shape[1:3])
    assert torch.equal(fitted[count:], fitted[count - 1 : count].expand(whole - count, -1, -1, -1))
    assert torch.equal(restore(fitted, clip, fit), clip)
    cut, fit = prepare(clip, takes=takes)
    assert len(cut) == len(fit.frames) == takes.fitting(count) <= count
