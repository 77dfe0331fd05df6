"""What holds for all stages, and from one to the next."""

import pytest
import torch

from weft.engine.monitor import Monitor
from weft.tests.vision.by_color import ByColor, Finder, moving, truth
from weft.vision.find import find
from weft.vision.prompts import read_prompts
from weft.vision.segment import segment
from weft.vision.track import track


def test_boxes_lead_to_the_mask():
    frames = moving()
    found = find(Finder(), frames, "a square")
    made = segment(ByColor(), frames, read_prompts(boxes=found.boxes))
    assert torch.equal(track(ByColor(), frames, made.masks, at=made.frames).masks, truth(frames))


def test_works_inside_inference_mode():
    with torch.inference_mode():
        frames = moving()
        made = segment(ByColor(), frames, read_prompts("3,5"))
        tracked = track(ByColor(), frames, made.masks)
    assert torch.equal(tracked.masks, truth(frames))
    assert not tracked.masks.is_inference()


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
