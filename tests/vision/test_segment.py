import pytest
import torch

from weft.tests.vision.by_color import BLUE, HEIGHT, WIDTH, ByColor, moving, square, truth
from weft.vision.ports import Candidates
from weft.vision.prompts import read_prompts
from weft.vision.segment import segment


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


class Neighbour(ByColor):
    """Thinks best of the thing beside the one that was clicked, then of both together."""

    def look(self, frame):
        masks = torch.zeros(3, HEIGHT, WIDTH, dtype=torch.bool)
        masks[0, 4:7, 5:8], masks[1, 4:7, 2:8], masks[2, 4:7, 2:5] = True, True, True
        return lambda prompts: Candidates(masks, torch.tensor([0.9, 0.8, 0.5]), masks.float())


@pytest.mark.parametrize(("points", "not_points", "columns"), [("4,5", "", (2, 8)), ("4.4,5", "5.6,5", (2, 5))])
def test_a_candidate_that_holds_what_was_clicked_goes_before_one_that_does_not(points, not_points, columns):
    (mask,) = segment(Neighbour(), moving(), read_prompts(points, not_points)).masks
    assert mask.any(0).nonzero()[:, 0].tolist() == [*range(*columns)]


def test_a_good_candidate_may_miss_the_click_by_a_pixel():
    beside = segment(Neighbour(), moving(), read_prompts("8,5")).masks[0]
    assert beside.any(0).nonzero()[:, 0].tolist() == [5, 6, 7]


def test_where_none_holds_it_the_best_is_taken():
    assert segment(Neighbour(), moving(), read_prompts("10,0")).masks[0].any(0).nonzero()[0] == 5


def test_clips_that_are_none_are_refused():
    with pytest.raises(ValueError, match="want frames"):
        segment(ByColor(), moving()[..., 0], read_prompts("3,5"))
    spoiled = moving()
    spoiled[2, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="frame 2 holds NaN"):
        segment(ByColor(), spoiled, read_prompts("2: 3,5"))
    with pytest.raises(ValueError, match="no choice 'all'"):
        segment(ByColor(), moving(), read_prompts("3,5"), choice="all")
