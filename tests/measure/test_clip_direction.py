"""The direction of an edit, with a model that sees and reads whatever vectors it is given."""

import math

import pytest
import torch

from weft.measure.clip_direction import STILL, best, direction_of, scores, told

RIGHT, UP = torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.0, 1.0, 0.0])


class Given:
    """A picture's vector is its first pixel, a text's is looked up."""

    name = "given"

    def __init__(self, **texts):
        self.vectors, self.read = texts, []

    def embed_pictures(self, pictures):
        return pictures[:, 0, 0]

    def embed_texts(self, texts):
        self.read += texts
        return torch.stack([self.vectors[t] for t in texts])


def pictures(*vectors):
    """[n, 2, 2, 3]"""
    return torch.stack([torch.as_tensor(v) for v in vectors])[:, None, None].expand(-1, 2, 2, -1)


def random(*shape):
    return torch.nn.functional.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(3)), dim=-1)


def test_the_formula_by_hand():
    source, before, after, *edits = random(6, 3)
    clip = Given(a=before, b=after)
    got = scores(clip, pictures(source), pictures(*edits), direction_of(clip, "a", "b"))
    for edit, score in zip(edits, got, strict=True):
        moved, wanted = ([y - x for x, y in zip(p.tolist(), q.tolist())] for p, q in ((source, edit), (before, after)))
        dot = sum(x * y for x, y in zip(moved, wanted))
        assert score == pytest.approx(dot / math.hypot(*moved) / math.hypot(*wanted), abs=1e-5)
    assert len({round(s, 3) for s in got}) == 3


def test_along_against_and_across():
    edits = pictures(UP + 0.1 * RIGHT, UP + 0.7 * RIGHT, UP - 0.1 * RIGHT, 2 * UP)
    assert scores(Given(), pictures(UP), edits, 3 * RIGHT) == pytest.approx((1, 1, -1, 0), abs=1e-5)


def test_an_edit_that_goes_nowhere_is_the_worst():
    edits = pictures(UP, UP + 0.5 * STILL * RIGHT, UP + 3 * STILL * RIGHT)
    nowhere, rounded, small = scores(Given(), pictures(UP), edits, RIGHT)
    assert nowhere == rounded == -1
    assert small == pytest.approx(1, abs=1e-3)


def test_the_best_is_the_first_of_equals():
    assert best((0.1, 0.4, -1.0, 0.4)) == 1
    assert best((-1.0, -1.0)) == 0


def test_scores_are_told():
    assert told((0.25, 0.5)) == "CLIP direction\ncandidate 0: 0.250\ncandidate 1: 0.500, taken"


def test_texts_are_read_without_blanks_around_them():
    clip = Given(a=RIGHT, b=UP)
    assert torch.equal(direction_of(clip, " a\n", "b "), UP - RIGHT)
    assert clip.read == ["a", "b"]


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (("", "b"), "'before' is empty: describe the frame as it is,"),
        (("a", " \n"), "'after' is empty: describe the frame as it should be,"),
        (("a", "a"), "to 'given', 'a' and 'a' say the same"),
        (("a", "alike"), "to 'given', 'a' and 'alike' say the same"),
    ],
)
def test_texts_that_lead_nowhere_are_refused(texts, message):
    with pytest.raises(ValueError, match=message):
        direction_of(Given(a=RIGHT, alike=RIGHT + 0.1 * STILL * UP, b=UP), *texts)


def spoiled(value):
    edits = pictures(UP, RIGHT).clone()
    edits[1, 1, 1, 2] = value
    return edits


@pytest.mark.parametrize(
    ("source", "edits", "message"),
    [
        (pictures(UP, UP), pictures(RIGHT), r"want one picture \[1, H, W, 3\] as source, got \[2, 2, 2, 3\]"),
        (pictures(UP)[0], pictures(RIGHT), "want one picture"),
        (pictures(UP), pictures(RIGHT)[:0], r"want at least one edit \[n, H, W, 3\], got \[0, 2, 2, 3\]"),
        (pictures(UP), pictures(RIGHT)[0], "want at least one edit"),
        (pictures(UP), pictures(RIGHT)[:, :1], r"source and edits differ in size: \[1, 2, 2, 3\] and \[1, 1, 2, 3\]"),
        (pictures(UP), spoiled(math.nan), "candidate 1 holds NaN"),
        (pictures(UP), spoiled(math.inf), "candidate 1 holds NaN or infinite"),
        (spoiled(math.nan)[1:], pictures(RIGHT), "the source holds NaN"),
    ],
)
def test_pictures_that_cannot_be_judged_are_refused(source, edits, message):
    with pytest.raises(ValueError, match=message):
        scores(Given(), source, edits, RIGHT)
