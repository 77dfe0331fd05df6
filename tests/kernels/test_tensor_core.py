"""The derived limits hold for tensor cores as emulated here, and for nothing much coarser."""

import pytest
import torch

from weft.kernels.em.reference import directions
from weft.tests.kernels.tensor_core import assert_within, em_error, map_error

SIZES = [(40, 3), (80, 3), (160, 3), (160, 1)]  # channels, TF32 products for one of float32


def cut(x, bits=10):
    """float32 numbers with so many bits behind the point, the rest cut off."""
    return (x.float().view(torch.int32) & -(1 << (23 - bits))).view(torch.float32).double()


def product(x, y, products):
    """x y' in TF32 products, eight channels at a time, sums cut to float32."""
    x, y = x.float().double(), y.float().double()
    (x_hi, y_hi), (x_lo, y_lo) = (cut(x), cut(y)), (cut(x - cut(x)), cut(y - cut(y)))
    total = 0.0
    for a, b in [(x_hi, y_lo), (x_lo, y_hi), (x_hi, y_hi)][-products:]:
        for some in range(0, x.shape[-1], 8):
            total = cut_sum(total + a[..., some : some + 8] @ b[..., some : some + 8].mT)
    return total


def cut_sum(x):
    """float64 to float32, towards 0."""
    rounded = x.float()
    return torch.where(rounded.double().abs() > x.abs(), rounded.nextafter(torch.zeros_like(rounded)), rounded).double()


@pytest.mark.parametrize(("size", "products"), SIZES)
def test_maps(size, products):
    q, k = (2 * torch.randn(2, 2, n, size) for n in (65, 63))
    got = (product(q, k, products) * 0.3).softmax(-1).mean(1)
    want = (q.double() @ k.double().mT * 0.3).softmax(-1).mean(1)
    assert holds(got, want, map_error(q, k, 0.3)) == (products == 3)


@pytest.mark.parametrize("temperature", [0.5, 0.01])
@pytest.mark.parametrize(("size", "products"), SIZES)
def test_em(size, products, temperature):
    x, v, b = torch.randn(2, 65, size), torch.randn(2, 65, 100), torch.randn(2, 33, size)
    results = []
    for logits in (lambda y: product(x, y, products), lambda y: x.double() @ y.mT):
        z = logits(directions(b, temperature, 1e-4, torch.float64)).softmax(-1)
        results.append((z.mT @ v.double() / (z.sum(1) + 1e-4)[..., None], z.sum(1)))
    errors = em_error(x, v, b, temperature, 1e-4)
    assert all(holds(*each) for each in zip(*results, errors)) == (products == 3)


def holds(got, want, error):
    try:
        assert_within(got, want, error)
    except AssertionError:
        return False
    return True
