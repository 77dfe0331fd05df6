"""How far from the exact result a kernel may be whose products are made on tensor cores: derived from how those round.

Three TF32 products make up a float32 one. With x = hi + lo, hi cut to 10 bits behind the point, lo * lo is left out
(2^-20 of the product) and each lo is cut again (2^-21 twice): at most 2^-19 of every product, of random sign where the
products are, so that over a sum six times the root of the summed squares is never seen. Sums are cut to 24 bits, not
rounded, every eight channels, at partial sums of up to four times that root. Half products are exact, and their sums
cut alike. In Triton's interpreter products are float32 as it is; there `numerics.CLOSE` is what holds.
"""

import torch

from weft.kernels.em.reference import directions

REST = 2.0**-20  # relative: exponentials that are approximate, divisions, sums of weights
SMALLEST = 1e-37  # below, float32 has fewer bits


def product_error(x, y):
    """[... M N]: of x y', from x [... M D] and y [... N D] in float64 whose products have random signs."""
    root = (x.square() @ y.square().mT).sqrt()
    return (6 * 2.0**-19 + x.shape[-1] / 8 * 4 * 2.0**-23) * root


def softmax_error(x, y, scale=1.0):
    """Softmax of scale x y' over its last dimension, and how far each entry may be off."""
    weights = (x @ y.mT * scale).softmax(-1)
    worst = product_error(x, y).amax(-1, keepdim=True) * scale  # of a row's logits
    return weights, weights * (torch.expm1(2 * worst) + REST) + SMALLEST


def map_error(q, k, scale):
    """[G P N]: of a head-mean map, from q and k [G H . D]."""
    return softmax_error(q.double(), k.double(), scale)[1].mean(1)


def em_error(tokens, values, bases, temperature, eps):
    """[... K W]: of `em_values`, and [... K] of the mass."""
    tokens, values = tokens.double(), values.double()
    z, off = softmax_error(tokens, directions(bases, temperature, eps, torch.float64))
    mass, mass_off = z.sum(-2), off.sum(-2)
    sums_off = off.mT @ values.abs() + product_error(z.mT, values.mT)
    mean = (z.mT @ values).abs() / (mass + eps)[..., None]
    return (sums_off + mean * mass_off[..., None]) / (mass + eps - mass_off)[..., None], mass_off


def assert_within(got, want, error):
    beyond = ((got.double() - want.double()).abs() / error).max().item()
    assert beyond <= 1, f"off by {beyond:.2f} times what rounding on tensor cores explains"
