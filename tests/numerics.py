"""The tolerance table: the only place where a number says how close is close enough."""

import torch

#        dtype            rtol    atol
CLOSE = {
    torch.float64: (1e-10, 1e-12),
    torch.float32: (1e-5, 1e-6),
    torch.float16: (2e-3, 1e-3),
    torch.bfloat16: (2e-2, 8e-3),
}
EXACT_GRADIENT = 1e-10  # float64 gradients against autograd, relative to the largest entry
SAME_EDIT = 1e-5  # one edit through two implementations of a network in float64, of the largest value
PICTURE_LEVELS = 2  # of 255: one edit, made and compressed in two processes


def assert_close(got, want, dtype=None):
    rtol, atol = CLOSE[dtype or want.dtype]
    torch.testing.assert_close(got.double(), want.double(), rtol=rtol, atol=atol)


def assert_gradient(got, want, limit=EXACT_GRADIENT):
    error = (got - want).abs().max() / want.abs().max().clamp(min=1e-30)
    assert error <= limit, f"gradient is off by {error:.2e} of its largest entry, limit {limit:.0e}"


def assert_no_worse(fused, plain, exact, times=2.0, floor=1e-6):
    """A fused kernel may err at most `times` what plain torch errs in the same dtype."""
    err, ref = ((x.double() - exact.double()).abs().max().item() for x in (fused, plain))
    assert err <= times * ref + floor, f"fused errs {err:.2e}, plain torch {ref:.2e}"


def assert_same_edit(got, want):
    """Two implementations of one network, step after step; latents are float32 between the steps."""
    error = (got - want).abs().max() / want.abs().max()
    assert error <= SAME_EDIT, f"the edits differ by {error:.2e} of the largest value, limit {SAME_EDIT:.0e}"
