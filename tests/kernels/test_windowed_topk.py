import itertools

import pytest
import torch

from weft.kernels.windowed_topk import chunked, windowed_topk
from weft.tests.kernels.sizes import Largest
from weft.tests.numerics import assert_close


def unit(*shape, dtype=torch.float64):
    return torch.nn.functional.normalize(torch.randn(*shape, dtype=dtype), dim=-1)


def brute_force(features, height, width, window, k, direction):
    """COVE's equations in loops: score the tokens of the window, sort, keep k."""
    frames, reach = features.tolist(), window // 2
    pairs = list(itertools.pairwise(frames))
    if direction == "backward":
        pairs = [(b, a) for a, b in pairs]
    index, similarity = [], []
    for mine, theirs in pairs:
        for place, token in enumerate(mine):
            y, x = divmod(place, width)
            scored = sorted(
                (-sum(a * b for a, b in zip(token, theirs[v * width + u])), v * width + u)
                for v in range(max(0, y - reach), min(height, y + reach + 1))
                for u in range(max(0, x - reach), min(width, x + reach + 1))
            )[:k]
            scored += [(float("inf"), -1)] * (k - len(scored))
            index.append([at for _, at in scored])
            similarity.append([-score for score, _ in scored])
    shape = (len(pairs), height * width, k)
    return torch.tensor(index).view(shape), torch.tensor(similarity, dtype=torch.float64).view(shape)


SHAPES = [  # F, height, width, D, window, k
    (3, 4, 6, 5, 3, 3),
    (2, 1, 7, 4, 5, 4),
    (2, 5, 3, 8, 1, 2),
    (3, 4, 4, 6, 7, 20),
    (2, 9, 11, 3, 21, 5),
    (2, 33, 3, 4, 9, 1),
]


@pytest.mark.parametrize("backend", ["reference", "chunked"])
@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_the_papers_search_by_brute_force(shape, direction, backend):
    frames, height, width, size, window, k = shape
    features = unit(frames, height * width, size)
    index, similarity = windowed_topk(features, height, width, window=window, k=k, direction=direction, backend=backend)
    want_index, want = brute_force(features, height, width, window, k, direction)
    assert index.dtype == torch.int32
    assert torch.equal(index.long(), want_index)
    assert_close(similarity, want)


@pytest.mark.parametrize("backend", ["reference", "chunked"])
def test_ties_go_to_the_lower_place(backend):
    features = torch.randint(-1, 2, (3, 30, 3)).double()  # small whole numbers: sums are exact, ties abound
    index, _ = windowed_topk(features, 5, 6, window=5, k=6, backend=backend)
    assert torch.equal(index.long(), brute_force(features, 5, 6, 5, 6, "forward")[0])
    constant, _ = windowed_topk(torch.ones(2, 30, 3), 5, 6, window=3, k=1, backend=backend)
    places = torch.arange(30)
    first_of_window = (places // 6 - 1).clamp(min=0) * 6 + (places % 6 - 1).clamp(min=0)
    assert torch.equal(constant[0, :, 0].long(), first_of_window)


def test_chunks_change_nothing(monkeypatch):
    features = unit(5, 12 * 35, 7)
    want = windowed_topk(features, 12, 35, window=5, k=3, backend="reference")
    monkeypatch.setattr(chunked, "BUDGET", 1)
    got = windowed_topk(features, 12, 35, window=5, k=3, backend="chunked")
    assert torch.equal(got[0], want[0])
    assert_close(got[1], want[1])


def test_chunked_makes_neither_the_full_map_nor_the_windows(monkeypatch):
    frames, side, size, window = 3, 24, 32, 5
    monkeypatch.setattr(chunked, "BUDGET", 2**16)
    with Largest() as seen:
        windowed_topk(unit(frames, side**2, size, dtype=torch.float32), side, side, window=window, backend="chunked")
    inputs = frames * side**2 * size
    assert seen.elements <= inputs < min(side**4, side**2 * window**2 * size)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_features_are_compared_in_float32(dtype):
    features = unit(2, 42, 9).to(dtype)
    index, similarity = windowed_topk(features, 6, 7, backend="chunked")
    exact_index, exact = windowed_topk(features.double(), 6, 7, backend="reference")
    assert similarity.dtype == torch.float32
    assert torch.equal(index, exact_index)
    assert_close(similarity, exact.float())


def test_a_still_video_matches_itself_and_a_shifted_one_its_shift():
    frame = unit(8, 10, 16)
    video = torch.stack([frame, frame, frame.roll((2, -1), dims=(0, 1))]).flatten(1, 2)
    (still, moved), _ = windowed_topk(video, 8, 10, window=5, k=1)
    place = torch.arange(80)
    assert torch.equal(still[:, 0].long(), place)
    unclipped = (place // 10 < 6) & (place % 10 > 0)
    assert torch.equal(moved[unclipped, 0].long(), (place + 2 * 10 - 1)[unclipped])
    back, _ = windowed_topk(video, 8, 10, window=5, k=1, direction="backward")
    assert torch.equal(back[1][moved[unclipped, 0].long(), 0].long(), place[unclipped])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": torch.zeros(2, 12)}, r"\[F N D\]"),
        ({"features": torch.zeros(2, 12, 3, dtype=torch.int32)}, "floating-point"),
        ({"features": torch.zeros(1, 12, 3)}, "at least 2 frames"),
        ({"height": 4}, "4 x 4 does not hold the 12 tokens"),
        ({"window": 4}, "odd"),
        ({"window": -1}, "odd"),
        ({"k": 0}, "at least one match"),
        ({"direction": "sideways"}, "'sideways'"),
        ({"backend": "fast"}, "'fast'"),
    ],
    ids=lambda x: next(iter(x)) if isinstance(x, dict) else "",
)
def test_what_does_not_fit_says_why(change, message):
    with pytest.raises(ValueError, match=message):
        windowed_topk(**({"features": torch.zeros(2, 12, 3), "height": 3, "width": 4} | change))
