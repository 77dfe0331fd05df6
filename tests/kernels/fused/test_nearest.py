import pytest
import torch

from weft.kernels import nearest
from weft.kernels.nearest import fused as kernel
from weft.tests.kernels.guards import Guards
from weft.tests.kernels.mutants import mutant

device = "cuda" if torch.cuda.is_available() else "cpu"
PAIRS = [(0, 0), (2, 1), (1, 1), (2, 0)]
CASES = [(128, 128, 32), (7, 9, 5), (130, 257, 40), (1, 1, 16), (65, 129, 33)]  # tokens here, there, channels


def inputs(count, others, size):
    return torch.randn(3, count, size, device=device), torch.randn(2, others, size, device=device)


def compare(here, there):
    with Guards() as g:
        got = nearest(g.input(here), g.input(there), PAIRS, backend="triton")
    want = nearest(here.double().cpu(), there.double().cpu(), PAIRS, backend="reference")  # the CPU's: first of equals
    assert torch.equal(got.cpu(), want)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_matches_the_reference(case, dtype):
    compare(*(x.to(dtype) for x in inputs(*case)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_tokens_are_told_apart_as_in_float32(dtype):
    here, there = (x.to(dtype) for x in inputs(50, 50, 64))
    there[:, 25:] = there[:, :25]
    there[:, 25:, 0] *= 1 + 2 * torch.finfo(dtype).eps
    compare(here, there)


def test_of_equals_the_lower_place_wins():
    here, there = (torch.randint(0, 2, x.shape, device=device).float() * 2 - 1 for x in inputs(40, 300, 4))
    compare(here, there)


def test_all_cosines_may_be_negative():
    here, there = inputs(9, 11, 24)
    compare(here.abs(), -there.abs())


def test_views():
    here, there = inputs(9, 11, 24)
    compare(here[..., ::2], there[..., ::2])


def exercise():
    compare(*inputs(70, 200, 24))
    test_of_equals_the_lower_place_wins()
    test_all_cosines_may_be_negative()


@pytest.mark.skipif(device == "cuda", reason="a mutant reads outside its buffers")
@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("newer = new > b_best", "newer = new >= b_best"),
        ("start + slot, b_at", "slot, b_at"),
        ('b_s = tl.where(o_t[None, :] < T, b_s, float("-inf"))', "pass"),
        ("b_s *= tl.load(shrink + o_t, mask=o_t < T, other=0.0)[None, :]", "pass"),
        ("shrink += m * T\n", "pass\n"),
        ("mask=(o_q < N)[:, None] & (o_c < C)[None, :]", "mask=(o_c < C)[None, :]"),
        ("mask=(o_t < T)[None, :] & (o_c < C)[:, None]", "mask=(o_t < T)[None, :]"),
        ("b_at.to(tl.int64), mask=o_q < N", "b_at.to(tl.int64)"),
        ("tl.load(pairs + 2 * pair + 1)", "tl.load(pairs + 2 * pair)"),
    ],
    ids=range(9),
)
def test_a_wrong_kernel_is_caught(old, new, monkeypatch, tmp_path):
    monkeypatch.setattr(kernel, "nearest_fused", mutant(kernel, old, new, tmp_path).nearest_fused)
    with pytest.raises(AssertionError):
        exercise()


def test_the_same_kernel_rewritten_is_not(monkeypatch, tmp_path):
    same = mutant(kernel, "newer = new > b_best", "newer = b_best < new", tmp_path)
    monkeypatch.setattr(kernel, "nearest_fused", same.nearest_fused)
    exercise()
