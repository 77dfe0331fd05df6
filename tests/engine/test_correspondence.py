import pytest
import torch

from weft.engine.correspondence import Correspondence

GRID, FRAMES, K = (3, 4), 5, 2


def tables(seed=0, k=K, frames=FRAMES, grid=GRID):
    generator = torch.Generator().manual_seed(seed)
    n = grid[0] * grid[1]
    return torch.randint(n, (frames - 1, n, k), generator=generator, dtype=torch.int32)


def made(forward=None, backward=None, grid=GRID):
    forward = tables(0) if forward is None else forward
    return Correspondence(forward, tables(1) if backward is None else backward, grid, 0, 9, "model")


def walked(found, frame, place):
    """{other frame: its K places} by the paper's words: hop from best match to best match."""
    there = {}
    at = place
    for other in range(frame + 1, found.frames):
        there[other] = found.forward[other - 1, at].tolist()
        at = there[other][0]
    at = place
    for other in reversed(range(frame)):
        there[other] = found.backward[other, at].tolist()
        at = there[other][0]
    return there


@pytest.mark.parametrize("frame", range(FRAMES))
def test_matches_far_away_follow_the_best_ones(frame):
    found = made()
    got = found.matches(frame)
    assert got.shape == (FRAMES, 12, K)
    assert got.dtype == torch.int32
    for place in range(12):
        assert {j: got[j, place].tolist() for j in range(FRAMES) if j != frame} == walked(found, frame, place)
        assert got[frame, place].tolist() == [place, -1]


def test_some_places_are_those_of_all():
    found, places = made(), torch.tensor([7, 0, 7])
    assert torch.equal(found.matches(2, places), found.matches(2)[:, places])


def test_it_knows_its_clip():
    found = made()
    assert (found.frames, found.top_k) == (FRAMES, K)
    found.require(FRAMES, GRID)
    for frames, grid in ((4, GRID), (FRAMES, (4, 3))):
        with pytest.raises(ValueError, match=r"for 5 frames on a grid of 3x4, .* connect one made from the latents"):
            found.require(frames, grid)


@pytest.mark.parametrize("frame", [-1, FRAMES])
def test_frames_outside_the_clip_are_refused(frame):
    with pytest.raises(ValueError, match="want a frame from 0 to 4"):
        made().matches(frame)


@pytest.mark.parametrize(
    ("forward", "backward", "match"),
    [
        (tables().long(), None, r"wants int32 tables \[F-1, 12, K\], got torch.int64 \[4, 12, 2\]"),
        (tables(grid=(3, 5)), None, r"wants int32 tables \[F-1, 12, K\], got torch.int32 \[4, 15, 2\]"),
        (tables(frames=1), None, r"got torch.int32 \[0, 12, 2\]"),
        (None, tables(k=3), r"tables of one clip: got \[4, 12, 2\] and \[4, 12, 3\]"),
    ],
)
def test_tables_that_do_not_fit_are_refused(forward, backward, match):
    with pytest.raises(ValueError, match=match):
        made(forward, backward)


def test_it_is_equal_to_itself_only():
    """ComfyUI hashes and compares what it caches."""
    found = made()
    assert found == found
    assert found != made()
    assert len({found, made()}) == 2
