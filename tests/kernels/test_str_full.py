import pytest
import torch

from weft.kernels.str_loss import full
from weft.kernels.str_loss.full import str_rows_full
from weft.tests.numerics import assert_close, assert_gradient

SHAPES = [(2, 5, 1, 0, 1), (3, 4, 2, 3, 1), (4, 3, 2, 1, 2)]  # F, N, H, keys of a text, neighbours


def inputs(F, N, H, text, D=4):
    sizes = (F * N, F * N + text)
    return [2 * torch.randn(H, sizes[i % 2], D, dtype=torch.float64) for i in range(4)]


def literal(q, k, F, neighbours, bias=None):
    """[H, F, N, N], entry by entry of the full map."""
    H, tokens, D = q.shape
    N = tokens // F
    logits = q @ k.mT * D**-0.5
    a = (logits if bias is None else logits + bias).softmax(-1)
    omega = torch.zeros(H, F, N, N, dtype=q.dtype)
    for i in range(F):
        for j in range(F):
            if 0 < abs(i - j) <= neighbours:
                for p in range(N):
                    for u in range(N):
                        omega[:, i, p, u] += a[:, i * N + p, j * N + u] + a[:, j * N + u, i * N + p]
    return omega


def rows_of(a, b):
    return torch.stack([(a * b).sum(-1), (a * a).sum(-1), (b * b).sum(-1)], -1)


@pytest.fixture(params=[False, True], ids=["one tile", "small tiles"], autouse=True)
def tiles(request, monkeypatch):
    if request.param:
        monkeypatch.setattr(full, "tile_budget", lambda device: 20)


@pytest.mark.parametrize("per_head", [False, True])
@pytest.mark.parametrize(("F", "N", "H", "text", "neighbours"), SHAPES)
def test_rows_are_those_of_the_full_map(F, N, H, text, neighbours, per_head):
    qs, ks, qt, kt = inputs(F, N, H, text)
    bias = torch.zeros(F * N + text, dtype=torch.float64)
    if text:
        bias[-1] = -torch.inf
    a, b = (literal(q, k, F, neighbours, bias) for q, k in ((qs, ks), (qt, kt)))
    want = rows_of(a, b) if per_head else rows_of(a.mean(0), b.mean(0))
    got = str_rows_full(qs, ks, qt, kt, F, neighbours=neighbours, per_head=per_head, bias_src=bias, bias_tgt=bias)
    assert_close(got, want)


@pytest.mark.parametrize(("F", "N", "H", "text", "neighbours"), SHAPES)
def test_gradients_are_autograds(F, N, H, text, neighbours):
    qs, ks, *target = inputs(F, N, H, text)
    weight = torch.randn(F, N, 3, dtype=torch.float64)
    both = []
    for of in (
        lambda q, k: rows_of(literal(qs, ks, F, neighbours).mean(0), literal(q, k, F, neighbours).mean(0)),
        lambda q, k: str_rows_full(qs, ks, q, k, F, neighbours=neighbours),
    ):
        leaves = [x.clone().requires_grad_() for x in target]
        both.append(torch.autograd.grad((of(*leaves) * weight).sum(), leaves))
    for got, want in zip(both[1], both[0]):
        assert_gradient(got, want)


def test_what_does_not_fit_is_refused():
    qs, ks, qt, kt = inputs(2, 3, 1, 0)
    with pytest.raises(ValueError, match="2 or more, got 1"):
        str_rows_full(qs, ks, qt, kt, 1)
    with pytest.raises(ValueError, match="of 4 frames"):
        str_rows_full(qs, ks, qt, kt, 4)
    with pytest.raises(ValueError, match="picture first"):
        str_rows_full(qs, ks, qt, kt[:, :3], 2)
