import pytest
import torch

from weft.benchmarks.measure import peak_bytes
from weft.kernels import reduce_rows, str_loss, str_rows, str_score
from weft.kernels.str_loss import chunked
from weft.kernels.str_loss.recompute import loss_chunked
from weft.kernels.str_loss.reference import score_reference
from weft.tests.numerics import assert_close, assert_gradient

SHAPES = [  # F, N, H, neighbours
    (2, 7, 1, 1), (2, 12, 3, 2), (3, 12, 2, 1), (3, 7, 3, 2), (5, 33, 2, 1), (5, 12, 1, 2), (6, 7, 2, 2),
]  # fmt: skip
REDUCTIONS = ["row_sum", "frame", "layer", "global"]


def inputs(F, N, H, D=4, per_head=False, dtype=torch.float64):
    """q_src, k_src, t_src, q_tgt, k_tgt, t_tgt; peaky maps, as trained ones are."""
    heads = (H,) if per_head else ()
    side = lambda: (  # noqa: E731
        *(2 * torch.randn(2, F, H, N, D, dtype=dtype)),
        torch.randn(*heads, N, F, F, dtype=dtype).softmax(-1),
    )
    return [*side(), *side()]


def with_grad(sides):
    return [x.clone().requires_grad_(n > 2) for n, x in enumerate(sides)]


@pytest.fixture
def small_tiles(monkeypatch):
    monkeypatch.setattr(chunked, "tile_budget", lambda device: 40)


@pytest.mark.parametrize(("F", "N", "H", "neighbours"), [(2, 4, 1, 3), (4, 3, 2, 1), (5, 3, 1, 2)])
def test_reference_is_the_papers_formula(F, N, H, neighbours):
    q, k, t = inputs(F, N, H)[:3]
    s = torch.stack([sum((q[i, h] @ k[i, h].T * 0.5).softmax(-1) for h in range(H)) / H for i in range(F)])
    want = torch.zeros(F, N, N, dtype=torch.float64)
    for i in range(F):
        for p in range(N):
            for u in range(N):
                for j in range(F):
                    if 0 < abs(i - j) <= neighbours:
                        want[i, p, u] += (
                            t[p, i, j] * s[j, p, u] + s[i, p, u] * t[u, i, j]
                            + t[u, j, i] * s[i, u, p] + s[j, u, p] * t[p, j, i]
                        )  # fmt: skip
    assert_close(score_reference(q, k, t, neighbours, 0.5), want)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_a_score_against_itself_is_as_similar_as_can_be(reduction):
    q, k, t = inputs(3, 5, 2)[:3]
    loss, rows = str_loss(q, k, t, q, k, t, reduction=reduction, backend="reference")
    units = {"row_sum": 15, "frame": 3, "layer": 1, "global": 1}[reduction]
    assert rows.shape == (3, 5, 3)
    assert_close(loss, torch.tensor(-float(units), dtype=torch.float64))


@pytest.mark.parametrize("per_head", [False, True], ids=["mean", "per_head"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize(("F", "N", "H", "neighbours"), SHAPES)
def test_chunked_and_its_gradient_are_the_references(
    F, N, H, neighbours, reduction, per_head, small_tiles, poisoned_memory
):
    sides = inputs(F, N, H, per_head=per_head)
    options = {"neighbours": neighbours, "reduction": reduction, "per_head": per_head}
    want, got = with_grad(sides), with_grad(sides)
    loss, rows = str_loss(*want, **options, backend="reference")
    (1.7 * loss).backward()
    loss_chunked, rows_chunked = str_loss(*got, **options, backend="chunked")
    (1.7 * loss_chunked).backward()
    assert rows_chunked.shape == ((H, F, N, 3) if per_head else (F, N, 3))
    assert_close(rows_chunked, rows)
    assert_close(loss_chunked, loss)
    for g, w in zip(got[3:], want[3:]):
        assert_gradient(g.grad, w.grad)


def test_any_function_of_the_rows_can_be_the_loss(small_tiles):
    """Gradients of ab and bb separately; aa is a constant."""
    sides = inputs(3, 7, 2)
    grads = []
    for backend in ("reference", "chunked"):
        leaves = with_grad(sides)
        rows = str_rows(*leaves, backend=backend)
        (rows * torch.linspace(-1, 2, rows.numel(), dtype=torch.float64).view_as(rows)).sum().backward()
        grads.append([x.grad for x in leaves[3:]])
    for g, w in zip(*grads):
        assert_gradient(g, w)


@pytest.mark.parametrize("wanted", [[3], [4], [5], [3, 4], [5, 3]], ids=str)
def test_only_the_gradients_asked_for(wanted):
    sides = inputs(3, 7, 2)
    want = with_grad(sides)
    str_loss(*want, backend="reference")[0].backward()
    got = [x.clone().requires_grad_(n in wanted) for n, x in enumerate(sides)]
    str_loss(*got, backend="chunked")[0].backward()
    for n, (g, w) in enumerate(zip(got, want)):
        assert (g.grad is not None) == (n in wanted)
        if n in wanted:
            assert_gradient(g.grad, w.grad)


def test_tensors_from_inference_mode_can_be_the_source():
    """ComfyUI runs every node in inference mode; the optimiser steps out of it for the target only."""
    with torch.inference_mode():
        sides = inputs(3, 7, 2)
        with torch.inference_mode(False), torch.enable_grad():
            q = sides[3].clone().requires_grad_()
            loss, _ = str_loss(*sides[:3], q, *sides[4:], backend="chunked")
            loss.backward()
    assert q.grad.abs().sum() > 0
    with torch.inference_mode():
        assert_close(str_loss(*sides)[0], loss.detach())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_computed_in_float32(dtype):
    sides = [x.to(dtype) for x in inputs(3, 12, 2)]
    exact, got = with_grad([x.double() for x in sides]), with_grad(sides)
    loss, rows = str_loss(*got, backend="chunked")
    loss.backward()
    want, _ = str_loss(*exact, backend="reference")
    want.backward()
    assert rows.dtype == torch.float32
    assert_close(loss, want, torch.float32)
    for g, w in zip(got[3:], exact[3:]):
        assert g.grad.dtype == dtype
        assert_gradient(g.grad.double(), w.grad, limit=torch.finfo(dtype).eps)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("backend", ["reference", "chunked"])
def test_a_score_of_zero_gives_no_loss_and_no_gradient(backend, reduction):
    sides = inputs(3, 7, 2)
    sides[5] = torch.eye(3).double().expand(7, 3, 3)  # every frame attends to itself alone: no neighbour counts
    leaves = with_grad(sides)
    loss, _ = str_loss(*leaves, reduction=reduction, backend=backend)
    loss.backward()
    assert loss == 0
    assert all((x.grad == 0).all() for x in leaves[3:])


def test_layers_add_up_and_global_is_one_cosine():
    layers = [str_rows(*inputs(3, n, 2)) for n in (7, 12)]
    for reduction in ("row_sum", "frame", "layer"):
        assert_close(reduce_rows(layers, reduction), sum(reduce_rows(x, reduction) for x in layers))
    ab, aa, bb = torch.cat([x.flatten(0, 1) for x in layers]).sum(0)
    assert_close(reduce_rows(layers, "global"), -ab / (aa * bb).sqrt())


def test_score_is_the_reference_read_out():
    q, k, t = inputs(4, 9, 2)[:3]
    want = score_reference(q, k, t, 1, 0.5)
    assert_close(str_score(q, k, t, 2), want[2])
    rows = torch.tensor([8, 0, 0])
    assert_close(str_score(q, k, t, 0, rows=rows), want[0, rows])


def test_nonsense_is_refused():
    good = inputs(3, 7, 2)

    def refused(why, change=None, **options):
        sides = list(good)
        if change:
            n, x = change
            sides[n] = x
        with pytest.raises(ValueError, match=why):
            str_loss(*sides, **options)

    refused(r"want q and k src \[F H N D\]", (1, good[1][:2]))
    refused(r"want t tgt \[N F F\] = \[7, 3, 3\], got \[7, 2, 3\]", (5, good[5][:, :2]))
    refused(r"want t src \[H N F F\]", per_head=True)
    refused("one floating dtype", (4, good[4].float()))
    refused("neighbours must be 1 or more", neighbours=0)
    refused("reduction='mean' is not one of row_sum", reduction="mean")
    with pytest.raises(ValueError, match="2 or more, got 1"):
        str_loss(*inputs(1, 7, 2))
    with pytest.raises(ValueError, match="source and target must match"):
        str_loss(*good[:3], *inputs(3, 8, 2)[3:])
    with pytest.raises(ValueError, match=r"frame must lie in 0\.\.2"):
        str_score(*good[:3], 3)
    with pytest.raises(ValueError, match="no rows"):
        reduce_rows([])


def test_memory_is_a_quarter_of_eager_autograd():
    """Forward and backward; 420 MB against 70 MB when this was written."""
    side = lambda: (*torch.randn(2, 8, 4, 1024, 32), torch.randn(1024, 8, 8).softmax(-1))  # noqa: E731
    sides = [*side(), *side()]

    def forward_backward(backend):
        str_loss(*with_grad(sides), backend=backend)[0].backward()

    eager, chunked_ = (peak_bytes(lambda b=b: forward_backward(b)) for b in ("reference", "chunked"))
    assert chunked_ <= eager / 4, f"{chunked_ / 1e6:.0f} MB against {eager / 1e6:.0f} MB"


def test_where_one_sweep_cannot_be_built_two_of_torch_give_the_same():
    """`loss_chunked` stands in for the kernel in that place: same arguments, same results."""
    sides = [x.double() for x in (*torch.randn(2, 3, 2, 7, 4), torch.randn(7, 3, 3).softmax(-1)) * 2]
    leaves = [x.clone().requires_grad_(n > 2) for n, x in enumerate(sides)]
    loss, rows = str_loss(*leaves, backend="chunked", scale=0.3)
    loss.backward()
    got, *gradients = loss_chunked(tuple(sides[:3]), tuple(sides[3:]), 1, 0.3, True, True)
    assert_close(got, rows.detach())
    for one, leaf in zip(gradients, leaves[3:]):
        assert_close(one, leaf.grad)
