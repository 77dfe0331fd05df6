import json
import logging
import time
import weakref
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from weft.engine.monitor import Monitor
from weft.tests.vision.by_color import BLUE, HEIGHT, WIDTH, ByColor, gone, moving, square, truth
from weft.toyworld import world
from weft.vision.track import _innermost, track, ways


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


def test_progress_is_told():
    class Bar(Monitor):
        def __init__(self):
            self.seen = []

        def progress(self, done, total, preview=None):
            self.seen.append((done, total, preview is not None and tuple(preview.shape)))

    bar = Bar()
    track(ByColor(), moving(), truth(moving())[:1], monitor=bar)
    assert bar.seen == [(k, 5, (1, HEIGHT, WIDTH, 3)) for k in range(1, 6)]


def innermost_by_erosion(mask):
    """The definition: peel off layer after layer; of what is left last, the pixel nearest the middle."""
    inner = F.pad(mask[None, None].float(), (1, 1, 1, 1))
    while (smaller := -F.max_pool2d(-inner, 3, stride=1, padding=1)).any():
        inner = smaller
    y, x = inner[0, 0, 1:-1, 1:-1].nonzero().T.float()
    middle_y, middle_x = mask.nonzero().T.float().mean(1, keepdim=True)
    i = ((x - middle_x) ** 2 + (y - middle_y) ** 2).argmin()
    return x[i].item(), y[i].item()


def test_the_innermost_pixel_is_the_one_that_erosion_leaves():
    ring = torch.ones(15, 17, dtype=torch.bool)
    ring[4:11, 4:13] = False
    masks = [ring, torch.ones(1, 1, dtype=torch.bool), torch.ones(7, 12, dtype=torch.bool)]
    for _ in range(200):  # specks and blobs of every size, at the border too
        height, width = torch.randint(1, 33, (2,)).tolist()
        specks = torch.rand(height, width) < 0.5 * torch.rand(())
        blobs = F.max_pool2d((torch.rand(height, width) < 0.05)[None, None].float(), 7, 1, 3)[0, 0] > 0
        masks += [mask for mask in (specks, blobs, ~specks) if mask.any()]
    assert len(masks) > 400
    for mask in masks:
        assert _innermost(mask) == innermost_by_erosion(mask)


def test_a_large_mask_takes_no_time():
    """Erosion takes seconds here, and a track asks for it twice a frame."""
    mask = torch.zeros(1080, 1920, dtype=torch.bool)
    mask[40:1040, 60:1800] = True
    start = time.process_time()
    assert _innermost(mask)[1] == 539  # of two middle rows the first
    assert time.process_time() - start < 2
