"""Prompts, masks, tracks and boxes, with models that know nothing but the color under a point."""

import json
import logging
import weakref
from dataclasses import replace

import pytest
import torch

from weft.engine.masks import Candidates, Detection, Prompts
from weft.engine.monitor import Monitor
from weft.methods.mask.find import find
from weft.methods.mask.prompts import check_prompts, read_frames, read_prompts, write_frames
from weft.methods.mask.segment import segment
from weft.methods.mask.show import overlay
from weft.methods.mask.track import track, ways
from weft.toyworld import world

HEIGHT, WIDTH = 12, 16
RED, BLUE, GRAY = (1.0, 0.0, 0.0), (0.0, 0.0, 1.0), (0.5, 0.5, 0.5)


class ByColor:
    """Answers with the pixels that have the color at the first point, inside the box if there is one."""

    name, follows = "by color", False

    def __init__(self):
        self.looks, self.asked = [], []

    def look(self, frame):
        self.looks.append(frame)

        def ask(prompts):
            self.asked.append(prompts)
            height, width = frame.shape[:2]
            left, top, right, bottom = prompts.box or (0, 0, width, height)
            x, y = prompts.points[0] if prompts.points else ((left + right) / 2, (top + bottom) / 2)
            mask = (frame - frame[round(y), round(x)]).abs().amax(-1) < 0.3
            rows, columns = torch.arange(height)[:, None], torch.arange(width)[None]
            mask &= (rows >= top) & (rows <= bottom) & (columns >= left) & (columns <= right)
            for x, y in prompts.not_points:
                mask &= (frame - frame[round(y), round(x)]).abs().amax(-1) >= 0.3
            return Candidates(mask[None], torch.tensor([0.9]), torch.where(mask, 5.0, -5.0)[None])

        return ask


def square(left, top, size=3, color=RED, frame=None):
    frame = torch.tensor(GRAY).expand(HEIGHT, WIDTH, 3).clone() if frame is None else frame
    frame[top : top + size, left : left + size] = torch.tensor(color)
    return frame


def moving(n=6):
    """A red square that moves one pixel to the right in each frame."""
    return torch.stack([square(2 + k, 4) for k in range(n)])


def truth(frames, color=RED):
    return (frames == torch.tensor(color)).all(-1).float()


# ---- prompts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "want"),
    {
        "3,4": {2: ((3, 4),)},
        "3, 4; 5.5 6": {2: ((3, 4), (5.5, 6))},
        "3,4\n0: 5,6; 7,8\n9,1": {0: ((5, 6), (7, 8)), 2: ((3, 4), (9, 1))},
        "0:1,1; 1: 2,2": {0: ((1, 1),), 1: ((2, 2),)},
        '[{"x": 3, "y": 4}, {"x": 5, "y": 6}]': {2: ((3, 4), (5, 6))},
        "[[3, 4]]": {2: ((3, 4),)},
    }.items(),
)
def test_points_are_read(text, want):
    asked = read_prompts(text, frame=2)
    assert {k: things[0].points for k, things in asked.items()} == want
    assert list(asked) == sorted(asked)


def test_every_box_is_a_thing_and_takes_the_points_inside():
    ((first, second, free),) = read_prompts("2,2; 9,9", "1,1", "0,0,4,4; 5,0,9,4").values()
    assert (first.points, first.box, first.not_points) == (((2, 2),), (0, 0, 4, 4), ((1, 1),))
    assert (second.points, second.box) == ((), (5, 0, 9, 4))
    assert (free.points, free.box) == (((9, 9),), None)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (("", "", ""), "no point and no box"),
        (("", "3,3", ""), "negative points alone"),
        (("0: 3,3", "1: 3,3", ""), "negative points at frame 1"),
        (("three, four", "", ""), "cannot read 'three, four' of positive: want 'x,y'"),
        (("3", "", ""), "cannot read '3' of positive"),
        (("", "", "1,2,3"), "cannot read '1,2,3' of boxes: want 'left,top,right,bottom'"),
        (("a: 3,4", "", ""), "cannot read 'a: 3,4'"),
        (("[1, 2]", "", ""), "as JSON"),
        (("[[1, 2, 3]]", "", ""), r"cannot read \[1.0, 2.0, 3.0\]"),
        (("[", "", ""), "as JSON"),
    ],
)
def test_what_cannot_be_read_is_said(texts, message):
    with pytest.raises(ValueError, match=message):
        read_prompts(*texts)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (("16,3",), "the point 16,3 at frame 0 is outside the picture, which is 16x12: want x in 0..15"),
        (("-1,3",), "the point -1,3"),
        (("3,12",), "y in 0..11"),
        (("3,3", "3,99"), "the point 3,99"),
        (("", "", "1,1,17,4"), "the box 1,1,17,4 at frame 0 is not inside"),
        (("", "", "4,4,4,8"), "left < right"),
        (("6: 3,3",), "there is no frame 6: the clip has 6, numbered 0 to 5"),
    ],
)
def test_prompts_outside_the_clip_are_refused(texts, message):
    with pytest.raises(ValueError, match=message):
        check_prompts(read_prompts(*texts), moving())


def test_frames_are_read():
    assert read_frames("0", 6) == (0,)
    assert read_frames(" 5, 0;5", 6) == (0, 5)
    assert read_frames("all", 3) == (0, 1, 2)
    assert read_frames(write_frames((1, 4)), 6) == (1, 4)


@pytest.mark.parametrize(("text", "message"), [("", "cannot read"), ("first", "cannot read"), ("6", "no frame 6")])
def test_frames_that_are_none_are_refused(text, message):
    with pytest.raises(ValueError, match=message):
        read_frames(text, 6)


# ---- masks ----------------------------------------------------------------------------------------------------------


def test_a_click_gives_its_frame_alone():
    frames = moving()
    made = segment(ByColor(), frames, read_prompts("1: 4,5; 4: 7,5"))
    assert made.frames == (1, 4)
    assert torch.equal(made.masks, truth(frames)[[1, 4]])
    assert made.scores == pytest.approx((0.9, 0.9))


def test_things_of_one_frame_are_one_mask():
    frame = square(10, 1, color=BLUE, frame=square(2, 6))
    made = segment(ByColor(), frame[None], read_prompts("", "", "1,5,5,9; 9,0,13,4"))
    assert torch.equal(made.masks[0], truth(frame) + truth(frame, BLUE))


def test_negative_points_take_away():
    frames = moving()
    with pytest.raises(ValueError, match="by color finds nothing at the point 3,5 of frame 0"):
        segment(ByColor(), frames, read_prompts("3,5", "4,6"))


class Three(ByColor):
    """Three candidates: a part, the thing, everything; and an empty one that scores best."""

    def look(self, frame):
        masks = torch.zeros(4, HEIGHT, WIDTH, dtype=torch.bool)
        masks[1, 5, 3], masks[2, 4:7, 2:5], masks[3] = True, True, True
        return lambda prompts: Candidates(masks, torch.tensor([0.99, 0.3, 0.8, 0.6]), masks.float())


@pytest.mark.parametrize(("choice", "area"), {"best": 9, "smallest": 1, "largest": HEIGHT * WIDTH}.items())
def test_the_choice_among_candidates_is_never_the_empty_one(choice, area):
    assert segment(Three(), moving(), read_prompts("3,5"), choice=choice).masks.sum() == area


def test_pictures_show_mask_points_and_box():
    frame = moving()[0]
    asked = Prompts(((3, 5),), ((12, 10),), (1, 1, 8, 9))
    picture = overlay(frame, truth(frame), (asked,))
    changed = (picture != frame).any(-1)
    assert changed[4:7, 2:5].all()
    assert changed[1, 1:9].all()
    assert changed[10, 12]
    assert not changed[11, 0]
    assert torch.equal(frame, moving()[0])  # the frame itself is left alone


def test_clips_that_are_none_are_refused():
    with pytest.raises(ValueError, match="want frames"):
        segment(ByColor(), moving()[..., 0], read_prompts("3,5"))
    spoiled = moving()
    spoiled[2, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="frame 2 holds NaN"):
        segment(ByColor(), spoiled, read_prompts("2: 3,5"))
    with pytest.raises(ValueError, match="no choice 'all'"):
        segment(ByColor(), moving(), read_prompts("3,5"), choice="all")


def test_works_inside_inference_mode():
    with torch.inference_mode():
        frames = moving()
        made = segment(ByColor(), frames, read_prompts("3,5"))
        tracked = track(ByColor(), frames, made.masks)
    assert torch.equal(tracked.masks, truth(frames))
    assert not tracked.masks.is_inference()


# ---- tracks ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", [(0,), (5,), (3,), (1, 4)], ids=str)
def test_a_mask_is_followed_both_ways(at):
    frames = moving()
    tracked = track(ByColor(), frames, truth(frames)[list(at)], at=at)
    assert torch.equal(tracked.masks, truth(frames))
    assert (tracked.given, tracked.lost) == (at, ())
    assert all(tracked.confidence[k] == 1 for k in at)
    assert min(tracked.confidence) > 0.8
    assert json.loads(tracked.json)["given"] == list(at)


def test_toy_clips_are_followed():
    clips = world.draw(6, torch.Generator().manual_seed(4321))
    video, alpha = world.render(replace(clips, pattern=torch.zeros_like(clips.pattern)))
    for frames, want in zip(video.movedim(2, -1), alpha > 0.5):
        got = track(ByColor(), frames, want[:1].float()).masks.bool()
        assert ((got & want).sum() / (got | want).sum()) > 0.9


def test_the_order_is_outward_from_what_is_known():
    assert list(ways(6, {3})) == [(3, [4, 5]), (3, [2, 1, 0])]
    assert list(ways(6, {4, 1})) == [(1, [2, 3]), (4, [5]), (1, [0])]


def test_masks_of_the_whole_clip_are_taken_at_the_frames_named():
    frames = moving()
    masks = truth(frames)
    masks[[0, 1, 3, 4, 5]] = 0
    assert torch.equal(track(ByColor(), frames, masks, at=(2,)).masks, truth(frames))


def gone(n=6, first=3, until=5):
    """The red square is away for some frames, and comes back to where it was."""
    frames = torch.stack([square(4, 4) for _ in range(n)])
    frames[first:until] = torch.tensor(GRAY)
    return frames


def test_a_lost_thing_is_held_and_found_again(caplog):
    frames = gone()
    with caplog.at_level(logging.WARNING):
        tracked = track(ByColor(), frames, truth(frames)[:1])
    assert tracked.lost == (3, 4)
    assert torch.equal(tracked.masks, truth(frames)[:1].expand(6, -1, -1))
    assert tracked.confidence[3] < 0.5 < tracked.confidence[5]
    assert "LOST at 2 of 6 frames (3-4)" in caplog.text


def test_held_going_backward_is_the_mask_behind():
    frames = gone().flip(0)  # away at 1 and 2
    tracked = track(ByColor(), frames, truth(frames)[5:], at=(5,))
    assert tracked.lost == (1, 2)
    assert torch.equal(tracked.masks[1], truth(frames)[5])


def test_a_lost_thing_may_be_empty_or_an_error(caplog):
    frames = gone()
    tracked = track(ByColor(), frames, truth(frames)[:1], when_lost="empty")
    assert tracked.masks.flatten(1).sum(1).tolist() == [9, 9, 9, 0, 0, 9]
    assert "LOST" in caplog.text
    with pytest.raises(ValueError, match=r"the track is lost at frame 3 \(confidence 0.0"):
        track(ByColor(), frames, truth(frames)[:1], when_lost="stop")


def test_another_thing_in_its_place_is_not_it():
    frames = gone()
    frames[3] = square(4, 4, color=BLUE)
    tracked = track(ByColor(), frames, truth(frames)[:1])
    assert 3 in tracked.lost


@pytest.mark.parametrize(
    ("masks", "at", "message"),
    [
        (torch.zeros(1, HEIGHT, WIDTH), (0,), "the mask of frame 0 is empty"),
        (torch.ones(1, 4, 4), (0,), r"the masks are \[1, 4, 4\], the frames 16x12"),
        (torch.ones(2, HEIGHT, WIDTH), (0,), "there are 2 masks for 1 frames"),
        (torch.ones(1, HEIGHT, WIDTH), (6,), "no frame 6"),
        (torch.ones(1, HEIGHT, WIDTH), (), "there are 1 masks for 0 frames"),
    ],
)
def test_masks_that_do_not_fit_are_refused(masks, at, message):
    with pytest.raises(ValueError, match=message):
        track(ByColor(), moving(), masks, at=at)


def test_an_unknown_way_is_refused():
    with pytest.raises(ValueError, match="no way 'guess'"):
        track(ByColor(), moving(), truth(moving())[:1], when_lost="guess")


class Follower(ByColor):
    """Has a memory of its own: gives the truth, and little confidence in frame 2."""

    follows = True

    def follow(self, frames, masks, monitor):
        self.given = masks
        for k in (3, 4, 5, 2, 0):
            yield k, truth(frames)[k].bool(), 0.1 if k == 2 else 0.9


def test_a_model_with_a_memory_follows_by_itself():
    frames, model = moving(), Follower()
    tracked = track(model, frames, truth(frames)[1:2], at=(1,))
    assert not model.looks
    assert list(model.given) == [1]
    assert model.given[1].dtype == torch.bool
    assert tracked.lost == (2,)
    assert torch.equal(tracked.masks[2], truth(frames)[1])
    assert torch.equal(tracked.masks[[0, 3, 4, 5]], truth(frames)[[0, 3, 4, 5]])


class Counting(ByColor):
    """Counts how much of what it saw and said is alive."""

    def __init__(self):
        self.kept, self.most = [], 0

    def look(self, frame):
        def ask(prompts):
            answer = ByColor().look(frame)(prompts)
            self.kept = [r for r in self.kept if r() is not None] + [weakref.ref(answer), weakref.ref(frame)]
            self.most = max(self.most, len(self.kept))
            return answer

        return ask


def test_no_frame_and_no_answer_is_kept():
    most = []
    for n in (4, 9):
        model = Counting()
        track(model, moving(n), truth(moving(n))[:1])
        most.append(model.most)
    assert most[0] == most[1]


class Stopped(Exception):
    pass


EVERY_FRAME = read_prompts("\n".join(f"{k}: {3 + k},5" for k in range(6)))


@pytest.mark.parametrize(
    "run",
    [
        pytest.param(lambda model, frames, m: segment(model, frames, EVERY_FRAME, monitor=m), id="segment"),
        pytest.param(lambda model, frames, m: track(model, frames, truth(frames)[:1], monitor=m), id="track"),
        pytest.param(lambda model, frames, m: find(Finder(), frames, "it", at=tuple(range(6)), monitor=m), id="find"),
    ],
)
def test_cancel_stops_between_frames(run):
    class Cancel(Monitor):
        checks = 0

        def check(self):
            self.checks += 1
            if self.checks == 4:
                raise Stopped

    model = ByColor()
    with pytest.raises(Stopped):
        run(model, moving(), Cancel())
    assert len(model.looks) <= 3


def test_progress_is_told():
    class Bar(Monitor):
        def __init__(self):
            self.seen = []

        def progress(self, done, total, preview=None):
            self.seen.append((done, total, preview is not None and tuple(preview.shape)))

    bar = Bar()
    track(ByColor(), moving(), truth(moving())[:1], monitor=bar)
    assert bar.seen == [(k, 5, (1, HEIGHT, WIDTH, 3)) for k in range(1, 6)]


# ---- boxes ----------------------------------------------------------------------------------------------------------


class Finder:
    """Finds the red square as 'a square', and worse boxes around it."""

    name = "finder"

    def find(self, frame, phrases, threshold):
        y, x = truth(frame).nonzero().T
        if not len(x):
            return [], 0.05
        best = (x.min().item(), y.min().item(), x.max().item() + 1, y.max().item() + 1)
        seen = [Detection((-3.0, 0.0, 99.0, 5.0), 0.3, "thing"), Detection(best, 0.8, phrases[0])]
        return [d for d in seen if d.score >= threshold], 0.8


def test_boxes_come_best_first_and_as_text():
    found = find(Finder(), moving(), "A  square.", at=(0, 2), top=0)
    assert [d.score for d in found.at[0]] == [0.8, 0.3]
    assert found.at[2][0].box == (4, 4, 7, 7)
    assert found.at[0][1].box == (0, 0, WIDTH, 5)  # cut to the picture
    assert found.boxes.splitlines()[1] == "2: 4.0,4.0,7.0,7.0; 0.0,0.0,16.0,5.0"
    assert json.loads(found.json)[0] == {"frame": 0, "box": [2, 4, 5, 7], "score": 0.8, "label": "a square"}
    assert [len(things) for things in read_prompts(boxes=found.boxes).values()] == [2, 2]
    assert len(found.pictures) == 2
    assert not torch.equal(found.pictures, moving()[[0, 2]])


def test_boxes_lead_to_the_mask():
    frames = moving()
    found = find(Finder(), frames, "a square")
    made = segment(ByColor(), frames, read_prompts(boxes=found.boxes))
    assert torch.equal(track(ByColor(), frames, made.masks, at=made.frames).masks, truth(frames))


def test_threshold_and_top():
    assert len(find(Finder(), moving(), "it", threshold=0.5, top=0).at[0]) == 1
    assert len(find(Finder(), moving(), "it", top=1).at[0]) == 1


def test_frames_where_nothing_is_found_are_left_out_aloud(caplog):
    found = find(Finder(), gone(), "a square", at=(0, 3, 4))
    assert list(found.at) == [0]
    assert "no 'a square' found in frames 3, 4" in caplog.text


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("", {}, "no text"),
        (" , .", {}, "no text"),
        ("a square", {"at": (3, 4)}, r"finder finds no 'a square' in frames 3, 4: its best score is 0.05"),
        ("a square", {"threshold": 0.9}, "best score is 0.80 and the threshold 0.9; lower it"),
        ("a square", {"threshold": 2}, "want a threshold in 0..1"),
    ],
)
def test_finding_nothing_is_an_error(text, options, message):
    with pytest.raises(ValueError, match=message):
        find(Finder(), gone(), text, **options)
