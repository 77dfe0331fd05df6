import logging

import pytest
import torch

from weft.engine.parts import run_in_parts

CLIP = torch.arange(22.0).view(11, 2)


class Function:
    """Twice its input; out of memory for more than `most` frames."""

    def __init__(self, most):
        self.most, self.asked = most, []

    def __call__(self, part):
        self.asked.append(len(part))
        if len(part) > self.most:
            raise torch.OutOfMemoryError("full")
        return 2 * part


@pytest.mark.parametrize("at_once", [1, 2, 3, 8, 11, 100])
def test_a_clip_is_its_parts(at_once):
    function = Function(100)
    assert torch.equal(run_in_parts(function, CLIP, at_once), 2 * CLIP)
    assert max(function.asked) == min(at_once, len(CLIP))
    assert sum(function.asked) == len(CLIP)


@pytest.mark.parametrize("most", range(1, 12))
def test_where_memory_runs_out_it_goes_on_with_half(most, caplog):
    function = Function(most)
    with caplog.at_level(logging.WARNING):
        assert torch.equal(run_in_parts(function, CLIP, 100), 2 * CLIP)
    failures = [n for n in function.asked if n > most]
    assert sum(function.asked) == len(CLIP) + sum(failures), "frames were done twice"
    assert len(caplog.records) == len(failures)
    assert failures == [11, 6, 3, 2][: len(failures)]


def test_memory_that_runs_out_on_the_way(caplog):
    function = Function(4)
    shrinking = lambda part: function(part) if part[0, 0] < 8 else Function(1)(part)  # noqa: E731
    assert torch.equal(run_in_parts(shrinking, CLIP, 4), 2 * CLIP)
    assert [r.getMessage() for r in caplog.records] == [
        "out of memory: going on with 2 of 11 frames at a time",
        "out of memory: going on with 1 of 11 frames at a time",
    ]


def test_one_frame_that_does_not_fit_is_out_of_memory():
    function = Function(0)
    with pytest.raises(torch.OutOfMemoryError):
        run_in_parts(function, CLIP, 4)
    assert function.asked == [4, 2, 1]


def test_what_failed_holds_no_memory_when_it_is_tried_again():
    import gc
    import weakref

    held, alive = [], []

    def function(part):
        gc.collect()
        alive.append([ref() is not None for ref in held])
        big = part + 1
        held.append(weakref.ref(big))
        if len(part) > 1:
            raise torch.OutOfMemoryError("full")
        return part

    run_in_parts(function, CLIP[:2], 2)
    assert alive[1] == [False]
