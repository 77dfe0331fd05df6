"""The benchmark of two things: each model edits by each way, and every row has the measures of its table."""

import pytest
import torch

from weft.benchmarks import toyworld_things as things
from weft.toyworld import scenes


@pytest.fixture
def quick(monkeypatch):
    """Few steps, and clips of few frames; what is computed stays the same."""
    draw = scenes.draw
    monkeypatch.setattr(things, "STEPS", 1)
    monkeypatch.setattr(things, "STR_STEPS", 1)
    monkeypatch.setattr(scenes, "draw", lambda *a, **k: draw(*a, **k, frames=2))


@pytest.fixture(scope="module")
def bench():
    return things.Bench()


def test_settings_have_names_of_their_own():
    found = [(s.section, s.name) for s in things.settings()]
    assert len(set(found)) == len(found)
    assert {s.model for s in things.settings()} == set(things.MODELS)
    assert {s.section for s in things.settings()} == set(things.TITLES)


@pytest.mark.parametrize(
    "name", ["words alone", "words alone, motion", "inside a mask", "inside a mask, motion", "STR-Match, motion"]
)
def test_every_way_makes_a_row(bench, quick, name):
    setting = next(s for s in things.settings() if s.name == name)
    row = bench.row(setting, 100)
    assert {*things.SHOWN} <= {*row, "shape_accuracy"}
    assert 5 < row["psnr_truth"] < 90


def test_models_edit_otherwise(bench, quick):
    pair = things.Pair.of("one of two", 100)
    both = [s for s in things.settings() if s.section == "one of two" and s.what == things.WORDS]
    frames = [bench.frames(pair, s) for s in both]
    assert [s.model for s in both] == ["epsilon", "motion"]
    assert not torch.equal(*frames)
