import pytest
import torch

from weft.benchmarks.measure import Operations
from weft.kernels import Pairs, nearest
from weft.kernels.nearest import chunked
from weft.tests.kernels.sizes import Largest

CHECKED = pytest.mark.parametrize("backend", ["reference", "chunked"])
PAIRS = [(0, 0), (2, 1), (1, 1), (2, 0), (0, 0)]


def tokens(sets=3, count=7, size=5, dtype=torch.float64):
    return torch.randn(sets, count, size, dtype=dtype)


@CHECKED
def test_it_is_the_largest_cosine(backend):
    here, there = tokens(), tokens(2, 9)
    got = nearest(here, there, PAIRS, backend=backend)
    assert got.dtype == torch.int64
    for mine, (g, m) in zip(got.tolist(), PAIRS):
        for i, token in enumerate(here[g]):
            cosines = [torch.cosine_similarity(token, other, dim=0).item() for other in there[m]]
            assert mine[i] == cosines.index(max(cosines))


@CHECKED
def test_of_equals_the_lower_place_wins(backend):
    here, there = (torch.randint(0, 2, (2, n, 4)).double() * 2 - 1 for n in (40, 30))  # cosines are exact
    got = nearest(here, there, [(0, 0), (1, 1)], backend=backend)
    for i in (0, 1):
        cosines = here[i] @ there[i].mT
        first = [row.tolist().index(row.max()) for row in cosines]
        assert got[i].tolist() == first


@CHECKED
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_tokens_give_the_places_of_the_same_numbers_in_float32(backend, dtype):
    here, there = (tokens(2, 50, 64).to(dtype) for _ in range(2))
    there[:, 25:] = there[:, :25]
    there[:, 25:, 0] *= 1 + 2 * torch.finfo(dtype).eps  # cosines that half could not tell apart
    got = nearest(here, there, [(0, 0), (1, 1)], backend=backend)
    assert torch.equal(got, nearest(here.double(), there.double(), [(0, 0), (1, 1)], backend="reference"))


@CHECKED
def test_no_pairs_and_tokens_of_length_0(backend):
    assert nearest(tokens(), tokens(), [], backend=backend).shape == (0, 7)
    assert (nearest(torch.zeros(1, 3, 5), tokens(1, 4, 5, torch.float32), [(0, 0)], backend=backend) == 0).all()
    there = torch.zeros(1, 2, 5)
    there[0, 1] = 1
    assert nearest(torch.ones(1, 1, 5), there, [(0, 0)], backend=backend).item() == 1


def test_chunks_change_nothing_and_hold_no_whole_map(monkeypatch):
    here, there = tokens(4, 100, 3), tokens(2, 90, 3)
    pairs = [(0, 0), (1, 0), (2, 1), (3, 1), (3, 0)]
    want = nearest(here, there, pairs, backend="reference")
    for budget in (1, 1000):
        monkeypatch.setattr(chunked, "gather_budget", lambda device, budget=budget: budget)
        with Largest() as seen:
            assert torch.equal(nearest(here, there, pairs, backend="chunked"), want)
        assert seen.elements <= max(here.numel(), there.numel()) < 100 * 90


@pytest.mark.parametrize("frames", [4, 40])
def test_operations_do_not_grow_with_the_frames(frames):
    here, there = tokens(frames), tokens(2)
    with Operations() as seen:
        nearest(here, there, [(f, m) for f in range(frames) for m in (0, 1)], backend="chunked")
    assert seen.count <= 30


@pytest.mark.parametrize(
    ("here", "there", "pairs", "message"),
    [
        (tokens()[0], tokens(), [], r"want tokens here \[G N C\]"),
        (tokens(size=4), tokens(), [], "with one C"),
        (tokens(), tokens(count=0), [], "T >= 1"),
        (tokens().float(), tokens(), [], "one floating dtype"),
        (tokens(), tokens().to("meta"), [], "on one device"),
        (tokens(), tokens(2), [(0, 2)], r"no pair \(0, 2\) in 3 sets here and 2 there"),
        (tokens(), tokens(2), [(-1, 0)], "no pair"),
    ],
)
def test_what_does_not_fit_says_why(here, there, pairs, message):
    with pytest.raises(ValueError, match=message):
        nearest(here, there, pairs)


def test_pairs_on_a_device_are_pairs():
    here, there, pairs = torch.randn(3, 7, 5), torch.randn(2, 6, 5), [(0, 1), (2, 0), (1, 1)]
    for backend in ("reference", "chunked"):
        told = Pairs(pairs, here.device)
        assert torch.equal(nearest(here, there, told, backend=backend), nearest(here, there, pairs, backend=backend))
    assert told.tensor.tolist() == [list(pair) for pair in pairs]
    with pytest.raises(ValueError, match="no pair"):
        nearest(here, there, Pairs([(3, 0)], here.device))
