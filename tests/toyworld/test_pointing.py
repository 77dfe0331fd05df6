"""The test of clicks and names is tried on models that are right by construction, and on some that are not."""

import re

import pytest
import torch

from weft.toyworld import pointing, scenes
from weft.vision.ports import Candidates, Detection

N = 12


@pytest.fixture(scope="module")
def held_out():
    return pointing.held_out(N)


class Knowing:
    """Answers a click with the thing under it, or with whatever `blur` makes of that."""

    def __init__(self, pictures, seen, blur=lambda mask, truth: (mask, 1.0)):
        self.known, self.blur = list(zip(pictures, seen)), blur

    def look(self, frame):
        truth = next(truth for picture, truth in self.known if torch.equal(picture, frame))
        things = [*truth, ~truth.any(0)]

        def ask(prompts):
            ((x, y),) = prompts.points
            mask, score = self.blur(next(t for t in things if t[int(y), int(x)]), truth)
            return Candidates(mask[None], torch.tensor([score]), mask[None].float())

        return ask


def test_held_out_scenes_show_both_sprites(held_out):
    drawn, pictures, seen = held_out
    assert len(drawn) == len(pictures) == len(seen) == N
    assert seen.sum((2, 3)).min() >= pointing.LEAST
    assert torch.equal(scenes.render(drawn)[0][:, 0].movedim(1, -1), pictures)
    assert len(pointing.held_out()[0]) == pointing.COUNT


def test_a_segmenter_that_knows_is_right_everywhere(held_out):
    _, pictures, seen = held_out
    values = pointing.clicks(Knowing(pictures, seen), pictures, seen)
    means = {name: value.mean().item() for name, value in values.items()}
    assert means.pop("apart") == 0
    assert means == dict.fromkeys(means, 1.0)


def test_one_that_gives_both_wherever_one_clicks_is_not(held_out):
    _, pictures, seen = held_out
    values = pointing.clicks(Knowing(pictures, seen, lambda mask, truth: (truth.any(0), 1.0)), pictures, seen)
    assert (values["apart"] == 1).all()
    assert (values["both_own"] == 0).all()
    assert (values["ground"] == 0).all()


@pytest.mark.parametrize(("mask", "score"), [("nothing", 1.0), ("both", 0.3)])
def test_nothing_and_a_low_score_are_right_on_the_background(held_out, mask, score):
    _, pictures, seen = held_out
    answers = {"nothing": lambda m, truth: (torch.zeros_like(m), score), "both": lambda m, truth: (truth.any(0), score)}
    values = pointing.clicks(Knowing(pictures, seen, answers[mask]), pictures, seen)
    assert (values["ground"] == 1).all()


class Reading:
    """Finds what is named where `scores` says so: a function of (whether color fits, whether shape fits)."""

    def __init__(self, drawn, pictures, seen, score):
        self.pictures, self.score, self.there = pictures, score, []
        for i in range(len(drawn)):
            words = [scenes.names(drawn, k)[i].split()[1:] for k in range(2)]
            self.there.append([(*w, pointing_box(seen[i, k])) for k, w in enumerate(words)])

    def find(self, frame, phrases, threshold):
        same = [torch.equal(p, frame) for p in self.pictures]
        there = self.there[same.index(True)] if any(same) else []
        found = []
        for phrase in phrases:
            _, color, shape = phrase.split()
            found += [Detection(box, self.score(c == color, s == shape), phrase) for c, s, box in there]
        best = max((d.score for d in found), default=0.0)
        return [d for d in found if d.score >= threshold], best


def pointing_box(mask):
    y, x = mask.nonzero().T.tolist()
    return (min(x), min(y), max(x) + 1.0, max(y) + 1.0)


@pytest.mark.parametrize(("score", "found", "wrong"), [(lambda c, s: float(c and s), 1, 0), (lambda c, s: 0.6, 0.5, 1)])
def test_a_detector_that_reads_both_words_is_right_and_one_that_reads_none_is_not(held_out, score, found, wrong):
    drawn, pictures, seen = held_out
    values = pointing.names(Reading(drawn, pictures, seen, score), drawn, pictures, seen)
    assert values["found"].mean().item() == pytest.approx(found, abs=0.3 if found < 1 else 0)
    assert values["wrong_over"].mean() == wrong
    assert (values["score_nothing"] == 0).all()
    assert len(values["found"]) == 2 * N


def test_wrong_names_name_nothing_that_is_there():
    looks = [("red", "square"), ("blue", "circle")]
    wrong = pointing._wrong(looks)
    assert set(wrong) == {"score_color", "score_shape", "score_crossed"}
    assert not {*wrong.values()} & {*looks}
    assert "score_crossed" not in pointing._wrong([("red", "square"), ("blue", "square")])


def test_the_command_prints_tables_of_models_elsewhere(monkeypatch, capsys):
    weights = str(pointing.HERE / "weights")
    monkeypatch.setattr("sys.argv", ["pointing", "--weights", weights, "--n", "8"])
    pointing.main()
    rows = re.findall(r"^\| ([^|]+) \| ([\d.]+) \| [\d.]+ to [\d.]+ \|$", capsys.readouterr().out, re.M)
    assert [name for name, _ in rows] == [*pointing.CLICKS.values(), *pointing.NAMES.values()]
    assert all(0 <= float(value) <= 1 for _, value in rows)
