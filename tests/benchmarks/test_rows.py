"""The frame of the toy benchmarks: rows outlive a stop, and a table says what the rows say."""

import json
from argparse import Namespace
from dataclasses import dataclass

import pytest

from weft.benchmarks import rows, toyworld_cove, toyworld_masks, toyworld_stem, toyworld_str, toyworld_via
from weft.benchmarks.rows import Rows, cell, difference, head, line
from weft.toyworld.report import bootstrap_interval

SHOWN = {"good": ("how good", 2), "fast": ("how fast", 0)}
BENCHMARKS = {
    "str": (toyworld_str, toyworld_str.settings()),
    "cove": (toyworld_cove, toyworld_cove.settings()),
    "stem": (toyworld_stem, toyworld_stem.settings()),
    "via": (toyworld_via, toyworld_via.SETTINGS),
    "masks": (toyworld_masks, toyworld_masks.SETTINGS),
}


@dataclass(frozen=True)
class Setting:
    section: str
    name: str
    clips: int = 4


A, B = Setting("first", "a"), Setting("second", "b", 2)


@pytest.fixture
def kept(tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "RESULTS", tmp_path)
    return Rows("trial")


def work(**changes):
    return Namespace(**({"part": "1/1", "clips": 0, "only": "", "order": "clip"} | changes))


def fill(kept, **changes):
    """The (setting, clip) pairs that were made, in order."""
    made = []

    def make(setting, clip):
        made.append((setting.name, clip))
        return {"good": clip / 3, "fast": 1.0}

    kept.fill([A, B], make, work(**changes))
    return made


def test_every_clip_of_every_setting_is_made_once(kept):
    assert fill(kept) == [("a", 0), ("b", 0), ("a", 1), ("b", 1), ("a", 2), ("a", 3)]
    assert fill(kept) == []
    assert kept.of("first", "a")[1] == {"section": "first", "setting": "a", "clip": 1, "good": 0.333333, "fast": 1.0}


def test_setting_by_setting_if_told_so(kept):
    assert fill(kept, order="setting") == [("a", 0), ("a", 1), ("a", 2), ("a", 3), ("b", 0), ("b", 1)]


def test_what_is_there_is_not_made_again(kept):
    fill(kept, only="second: b")
    assert set(kept.groups()) == {("second", "b")}
    assert fill(kept) == [("a", clip) for clip in range(4)]


def test_parts_share_the_clips(kept):
    assert fill(kept, part="2/2") == [("a", 1), ("b", 1), ("a", 3)]
    assert fill(kept, part="1/2", clips=1) == [("a", 0), ("b", 0)]
    assert fill(kept, part="1/2") == [("a", 2)]


def test_a_failure_loses_no_row(kept):
    def make(setting, clip):
        if clip == 2:
            raise KeyboardInterrupt
        return {"good": 1.0}

    with pytest.raises(KeyboardInterrupt):
        kept.fill([A], make, work())
    assert [row["clip"] for row in kept.read()] == [0, 1]


def test_a_line_has_means_and_intervals_and_leaves_out_what_was_not_measured():
    values = [1.0, 2.0, 4.0]
    low, high = bootstrap_interval(values)
    told = line("a", [{"good": v} for v in values], SHOWN, "more")
    assert told == f"| a | 3 | {7 / 3:.2f} [{low:.2f}, {high:.2f}] |  | more |"
    assert head(SHOWN, "last")[0].count("|") == told.count("|")


def test_cells_without_numbers_are_empty():
    assert cell([], 2) == cell([1.0, float("nan")], 2) == ""
    assert cell([1.5], 1, "+") == "+1.5"


def test_differences_are_of_the_clips_that_both_have():
    mine = {0: {"good": 1.0}, 1: {"good": 5.0}, 2: {"good": 9.0}}
    base = {1: {"good": 2.0, "fast": 1.0}, 2: {"good": 6.0, "fast": 1.0}, 3: {"good": 0.0}}
    assert difference("a", mine, base, SHOWN) == ["| a | 2 | +3.00 [+3.00, +3.00] |  |"]
    assert difference("a", mine, {}, SHOWN) == []


@pytest.mark.parametrize("name", BENCHMARKS)
def test_committed_rows_are_whole_and_the_table_is_theirs(name):
    """Fails where settings were changed without a run, or rows without a new table."""
    module, settings = BENCHMARKS[name]
    clips = {key: len(group) for key, group in module.ROWS.groups().items()}
    assert clips == {(s.section, s.name): s.clips for s in settings}
    told = [text for text in module.table().splitlines() if text.startswith("|")]
    assert told == [text for text in module.ROWS.table.read_text().splitlines() if text.startswith("|")]
    assert all(json.loads(text) for text in module.ROWS.file.read_text().splitlines())
