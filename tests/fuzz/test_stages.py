"""A cancel is obeyed before the next evaluation, whichever stage it meets."""

import pytest

from weft.tests.fuzz.stages import STAGES, World, cancelled


@pytest.fixture(scope="module")
def world():
    return World()


@pytest.mark.parametrize("stage", STAGES)
def test_nothing_begins_after_a_cancel(stage, world):
    rows = cancelled(stage, world)
    assert rows[0]["of"] >= 3
    assert len(rows) >= 2
    for row in rows:
        assert row["stopped"], row
        assert row["after"] == 0, row
