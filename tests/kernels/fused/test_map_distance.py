from unittest.mock import patch

import pytest
import torch

from weft.kernels import map_distance
from weft.kernels.attention_map import fused_distance
from weft.tests.kernels.guards import Guards
from weft.tests.numerics import CLOSE, assert_close, assert_gradient

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.parametrize("together", [1, 2, 99])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(3, 2, 33, 24), (1, 1, 7, 5), (2, 1, 64, 64)], ids=str)
def test_fused_is_the_reference(shape, dtype, together):
    sides = [(2 * torch.randn(shape, device=DEVICE)).to(dtype) for _ in range(4)]
    exact = [x.double().requires_grad_(n > 1) for n, x in enumerate(sides)]
    want = map_distance(*exact, backend="reference")
    want.backward()
    with Guards() as g, patch.object(fused_distance, "together", lambda frames, N: min(together, frames)):
        fenced = [g.input(x) for x in sides]
        for x in fenced[2:]:
            x.requires_grad_()
        got = map_distance(*fenced, backend="triton")
        got.backward()
        gradients = [x.grad for x in fenced[2:]]
    assert_close(got.detach(), want.detach(), torch.float32)
    for mine, theirs in zip(gradients, exact[2:]):
        assert_gradient(mine.double(), theirs.grad, limit=CLOSE[dtype][0])
