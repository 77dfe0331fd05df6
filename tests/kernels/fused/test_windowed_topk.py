import pytest
import torch

from weft.kernels.windowed_topk import fused as kernel
from weft.kernels.windowed_topk import windowed_topk
from weft.tests.kernels.guards import Guards
from weft.tests.kernels.mutants import mutant
from weft.tests.numerics import assert_close

device = "cuda" if torch.cuda.is_available() else "cpu"

CASES = [  # F, height, width, D, window, k
    (2, 8, 8, 32, 3, 3),  # everything on the tile
    (3, 5, 7, 40, 5, 3),
    (2, 3, 19, 33, 9, 4),
    (2, 4, 5, 8, 3, 11),  # more matches asked for than any window holds
    (2, 13, 16, 9, 9, 30),  # than the corners hold, over several blocks of candidates
    (2, 13, 17, 17, 33, 5),  # the whole frame
    (2, 1, 9, 16, 5, 1),
]


def unit(frames, height, width, size):
    return torch.nn.functional.normalize(torch.randn(frames, height * width, size, device=device), dim=-1)


def compare(features, height, width, **options):
    with Guards() as g:
        index, similarity = windowed_topk(g.input(features), height, width, backend="triton", **options)
    want_index, want = windowed_topk(features, height, width, backend="reference", **options)
    assert torch.equal(index, want_index)
    assert_close(similarity, want)


@pytest.mark.parametrize("attempt", range(3))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_matches_the_reference(case, dtype, attempt):
    *shape, window, k = case
    compare(unit(*shape).to(dtype), *shape[1:3], window=window, k=k)


@pytest.mark.parametrize("attempt", range(3))
@pytest.mark.parametrize("k", [1, 6])
def test_ties_go_to_the_lower_place(k, attempt):
    features = torch.randint(-1, 2, (2, 13 * 17, 3), device=device).float()  # sums are exact, ties abound
    for window in (5, 33):
        compare(features, 13, 17, window=window, k=k)


def test_backward_and_views_of_larger_tensors():
    features = unit(3, 5, 7, 24)
    compare(features, 5, 7, direction="backward")
    compare(features[..., ::2], 5, 7)


def test_what_the_kernel_cannot_do_says_why():
    features = unit(2, 9, 9, 4)
    with pytest.raises(ValueError, match="k = 65 is over 64"):
        windowed_topk(features, 9, 9, k=65, backend="triton")
    assert windowed_topk(features, 9, 9, k=65)[0].shape == (1, 81, 65)


def exercise():
    compare(unit(2, 13, 17, 17), 13, 17, window=33, k=5)
    compare(unit(2, 13, 16, 9), 13, 16, window=9, k=30)
    compare(torch.randint(-1, 2, (2, 13 * 17, 3), device=device).float(), 13, 17, window=9, k=4)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("newer = new > old", "newer = new >= old"),
        ("(rows_off <= reach)", "(rows_off < reach)"),
        ("tl.maximum(left - reach, 0)", "left - reach"),
        ("(start + new_slot) // wide", "new_slot // wide"),
        ("(o_c[None, :] < count) & (d + o_d[:, None] < D)", "o_c[None, :] < count"),
        ('tl.where(b_best == float("-inf"), -1, b_at)', "b_at"),
        ("stored = inside[:, None] & (o_k[None, :] < K)", "stored = o_k[None, :] < K"),
        ("b_old = tl.where(kept", "_ = tl.where(kept"),
    ],
    ids=range(8),
)
def test_a_wrong_kernel_is_caught(old, new, monkeypatch, tmp_path):
    monkeypatch.setattr(kernel, "windowed_topk_fused", mutant(kernel, old, new, tmp_path).windowed_topk_fused)
    with pytest.raises(AssertionError):
        exercise()


def test_the_same_kernel_rewritten_is_not(monkeypatch, tmp_path):
    same = mutant(kernel, "newer = new > old", "newer = old < new", tmp_path)
    monkeypatch.setattr(kernel, "windowed_topk_fused", same.windowed_topk_fused)
    exercise()
