import sys
from unittest.mock import patch

import pytest
import torch

from weft.kernels.em import em_attention, em_bases, em_step, em_values
from weft.kernels.em import fused as kernel
from weft.kernels.em.reference import directions
from weft.tests.kernels.guards import Guards
from weft.tests.kernels.mutants import mutant
from weft.tests.kernels.tensor_core import assert_within, em_error
from weft.tests.numerics import assert_close, assert_no_worse

device = "cuda" if torch.cuda.is_available() else "cpu"

CASES = [  # leading dimensions, tokens, bases, D, size of the values
    ((2,), 128, 64, 32, 32),  # everything on the tile
    ((2, 2), 37, 5, 40, 24),
    ((1,), 131, 70, 7, 7),
    ((1,), 65, 33, 80, 100),
    ((1,), 40, 3, 160, 5),
    ((1,), 1, 1, 3, 1),
]


def inputs(rows, tokens, bases, size, width):
    x, v = (torch.randn(*rows, tokens, n, device=device) for n in (size, width))
    return x, v, torch.randn(*rows, bases, size, device=device)


def compare(tokens, values, bases, temperature):
    """`assert_close` where rounding is not amplified; at STEM's temperature, no worse than torch in float32.

    On a GPU, within what its tensor cores round, which with heads of 80 or 160 channels is more.
    """
    options = {"temperature": temperature, "eps": 1e-4}
    launcher = sys.modules[kernel.em_sums_fused.__module__]  # a mutant's own module
    with (
        Guards() as g,
        patch.multiple(
            launcher,
            directions=lambda *args: g.input(directions(*args)),  # an internal buffer that does not come from `empty`
            SHORTEST=32,  # so that a hundred tokens are several stretches
        ),
    ):
        x, v, b = (g.input(x) for x in (tokens, values, bases))
        got = (*em_step(x, b, backend="triton", **options), em_values(x, v, b, backend="triton", **options))

    def reference(x, v, b):
        step = em_step(x, b, backend="reference", **options)
        return (*step, em_values(x, v, b, backend="reference", **options))

    exact = reference(tokens.double(), values.double(), bases.double())
    if device == "cuda":
        bases_off, mass_off = em_error(tokens, tokens, bases, temperature, 1e-4)
        values_off, _ = em_error(tokens, values, bases, temperature, 1e-4)
        dead = ((exact[1] - 1e-4).abs() <= mass_off)[..., None]  # so near to being kept that either may happen
        for mine, true, off in zip(got, exact, (bases_off.masked_fill(dead, float("inf")), mass_off, values_off)):
            assert mine.dtype == torch.float32
            assert_within(mine, true, off)
        return
    for mine, plain, true in zip(got, reference(tokens, values, bases), exact):
        assert mine.dtype == torch.float32
        # three TF32 products carry 22 bits, not float32's 24: hence 4 times
        assert_no_worse(mine, plain, true, times=4, floor=1e-6 * max(1.0, true.abs().max().item()))
        if temperature >= 0.5:
            assert_close(mine, plain)


@pytest.mark.parametrize("attempt", range(3))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_matches_the_reference(case, dtype, attempt):
    x, v, b = inputs(*case)
    compare(x.to(dtype), v.to(dtype), b, 0.5)


@pytest.mark.parametrize("attempt", range(3))
def test_matches_at_stems_temperature_with_dead_bases(attempt):
    x, v, b = inputs((2,), 90, 70, 16, 16)
    compare(x.half(), v.half(), b, 0.01)
    _, mass = em_step(x, b, temperature=0.01, backend="triton")
    assert (mass < 1e-4).any()
    assert_close(mass.sum(-1), torch.full((2,), 90.0, device=device))


def test_iterations_attention_and_views():
    x, v, b = inputs((1, 2), 40, 12, 20, 20)
    options = {"temperature": 1.0, "backend": "triton"}
    once, _ = em_step(x, b, **options)
    twice, mass = em_step(x, once, **options)
    want = twice, em_values(x, v, once, **options), mass
    assert all(map(torch.equal, em_bases(x, v, b, iterations=2, **options), want))
    attended = torch.nn.functional.scaled_dot_product_attention(x, *want[:2])
    assert torch.equal(em_attention(x, x, v, b, iterations=2, **options), attended)
    x, v, b = (y.mT.contiguous().mT for y in (x, v, b))
    compare(x, v, b, 0.5)


def test_what_the_kernel_cannot_do_says_why():
    x, _, b = inputs((1,), 9, 4, 300, 8)
    with pytest.raises(ValueError, match="token size 300 is over 256"):
        em_step(x, b, temperature=0.1, backend="triton")
    with pytest.raises(ValueError, match="no backward"):
        em_step(x[..., :8].requires_grad_(), b[..., :8], temperature=0.1, backend="triton")


def exercise():
    compare(*inputs((2,), 131, 70, 7, 9), 0.5)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("mask=o_t < last, other=float(\"inf\")", "mask=o_t < last, other=1.0"),
        ("b_s, float(\"-inf\")", "b_s, 0.0"),
        ("b_sum * tl.exp(b_max - b_new)", "b_sum"),
        ("mask=(o_t[:, None] < last) & (o_w[None, :] < W)", "mask=o_w[None, :] < W"),
        ("return sums.sum(0), mass.sum(0)", "return sums[0], mass[0]"),
        ("(split * tl.num_programs(1) + row) * K", "(row * tl.num_programs(2) + split) * K"),
        ("tl.store(total + row * T + o_t, b_sum, mask=o_t < T)", "tl.store(total + row * T + o_t, b_sum)"),
        ("tl.store(peak + row * T + o_t, b_max, mask=o_t < T)", "tl.store(peak + row * T + o_t, b_max)"),
        ("mask=(o_k[None, :] < K) & (d + o_d[:, None] < D)", "mask=(o_k[None, :] < K)"),
    ],
    ids=range(9),
)  # fmt: skip
def test_a_wrong_kernel_is_caught(old, new, monkeypatch, tmp_path):
    changed = mutant(kernel, old, new, tmp_path)
    monkeypatch.setattr(kernel, "em_sums_fused", changed.em_sums_fused)
    with pytest.raises(AssertionError):
        exercise()


def test_the_same_kernel_rewritten_is_not(monkeypatch, tmp_path):
    same = mutant(kernel, "b_max = tl.load(peak", "b_max = 1 * tl.load(peak", tmp_path)
    monkeypatch.setattr(kernel, "em_sums_fused", same.em_sums_fused)
    exercise()
