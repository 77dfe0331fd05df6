import pytest
import torch

from weft.kernels import map_distance
from weft.kernels.attention_map import chunked
from weft.tests.kernels.sizes import Largest
from weft.tests.numerics import assert_close, assert_gradient


def inputs(G=3, H=2, N=7, D=4, dtype=torch.float64):
    return [2 * torch.randn(G, H, N, D, dtype=dtype) for _ in range(4)]


def by_hand(q_src, k_src, q_tgt, k_tgt, scale):
    maps = [(q @ k.mT * scale).softmax(-1).mean(1) for q, k in ((q_src, k_src), (q_tgt, k_tgt))]
    return (maps[0] - maps[1]).square().sum()


@pytest.mark.parametrize("backend", ["auto", "reference", "chunked"])
@pytest.mark.parametrize("scale", [None, 0.3])
def test_distance_and_gradient_are_autograds(scale, backend, monkeypatch, poisoned_memory):
    monkeypatch.setattr(chunked, "tile_budget", lambda device: 40)
    sides = [x.requires_grad_(n > 1) for n, x in enumerate(inputs())]
    want = by_hand(*sides, 0.5 if scale is None else scale)
    gradients = torch.autograd.grad(1.7 * want, sides[2:])
    got = map_distance(*sides, scale=scale, backend=backend)
    assert_close(got, want)
    for mine, theirs in zip(torch.autograd.grad(1.7 * got, sides[2:]), gradients):
        assert_gradient(mine, theirs)


def test_the_source_is_a_constant():
    sides = [x.requires_grad_() for x in inputs()]
    map_distance(*sides).backward()
    assert [x.grad is None for x in sides] == [True, True, False, False]


def test_no_map_of_a_head_is_held(monkeypatch):
    monkeypatch.setattr(chunked, "tile_budget", lambda device: 2**10)
    sides = [x.requires_grad_(n > 1) for n, x in enumerate(inputs(4, 8, 64, 4, torch.float32))]
    with Largest() as seen:
        map_distance(*sides).backward()
    assert seen.elements <= max(64 * 64, sides[0].numel()) < 4 * 8 * 64 * 64


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_computed_in_float32(dtype):
    sides = [x.to(dtype) for x in inputs()]
    exact = [x.double().requires_grad_() for x in sides]
    want = by_hand(*exact, 0.5)
    want.backward()
    sides[2].requires_grad_()
    got = map_distance(*sides)
    got.backward()
    assert got.dtype == torch.float32
    assert_close(got, want.detach(), torch.float32)
    assert_gradient(sides[2].grad.double(), exact[2].grad, limit=torch.finfo(dtype).eps)


def test_tensors_from_inference_mode_can_be_the_source():
    with torch.inference_mode():
        sides = inputs()
        with torch.inference_mode(False), torch.enable_grad():
            q = sides[2].clone().requires_grad_()
            map_distance(*sides[:2], q, sides[3]).backward()
    assert q.grad.abs().sum() > 0


def test_what_does_not_fit_says_why():
    a, b, c, d = inputs()
    for wrong in (c[:2], c.float(), c.to("meta"), c[0]):
        with pytest.raises(ValueError, match=r"alike in shape, dtype and device; got"):
            map_distance(a, b, wrong, d)
    with pytest.raises(ValueError, match="floating dtype"):
        map_distance(*(x.int() for x in (a, b, c, d)))
