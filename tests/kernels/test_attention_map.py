import math

import pytest
import torch

from weft.kernels import attention_map
from weft.kernels.attention_map import chunked
from weft.tests.numerics import assert_close


def by_hand(q, k, scale):
    """exp(q.k) over its sum, one entry at a time."""
    (G, H, P, D), N = q.shape, k.shape[2]
    out = torch.zeros(G, P, N, dtype=torch.float64)
    for g in range(G):
        for h in range(H):
            for p in range(P):
                e = [math.exp(sum(float(q[g, h, p, d] * k[g, h, n, d]) for d in range(D)) * scale) for n in range(N)]
                out[g, p] += torch.tensor(e, dtype=torch.float64) / sum(e) / H
    return out


def test_reference_is_the_definition():
    q, k = torch.randn(2, 2, 3, 5, 4).double()
    assert_close(attention_map(q, k, scale=0.7, backend="reference"), by_hand(q, k, 0.7))
    assert_close(attention_map(q, k, backend="reference"), by_hand(q, k, 0.5))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_chunked_is_the_reference(dtype, monkeypatch, poisoned_memory):
    monkeypatch.setattr(chunked, "tile_budget", lambda device: 40)
    q, k = torch.randn(2, 3, 17, 8).to(dtype), torch.randn(2, 3, 12, 8).to(dtype)
    rows = torch.tensor([16, 0, 3, 3])
    got = attention_map(q, k, rows=rows, backend="chunked")
    assert got.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert_close(got, attention_map(q, k, backend="reference")[:, rows])
    assert_close(got.sum(-1), torch.ones(2, 4))


@pytest.mark.parametrize(
    ("k", "rows", "why"),
    [
        (torch.zeros(1, 2, 5, 3), None, r"want q \[G H N D\]"),
        (torch.zeros(1, 2, 5, 4).half(), None, "share a floating dtype"),
        (torch.zeros(1, 2, 5, 4), torch.tensor([5]), r"rows must lie in 0\.\.4, got 5\.\.5"),
        (torch.zeros(1, 2, 5, 4), torch.tensor([0.5]), "of int"),
    ],
)
def test_nonsense_is_refused(k, rows, why):
    with pytest.raises(ValueError, match=why):
        attention_map(torch.zeros(1, 2, 5, 4), k, rows=rows)
