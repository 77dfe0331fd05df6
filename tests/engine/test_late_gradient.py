"""The gradient of a loss over many layers: torch's own, and it does not wait in memory."""

import pytest
import torch

from weft.benchmarks.counted import Counted
from weft.engine.late_gradient import late_gradient
from weft.tests.numerics import assert_close

WIDTH = 512


def chain(z, layers):
    """Two tensors of each of some layers, which the next is made of too."""
    seen = []
    for n in range(layers):
        q, k = torch.sin(z + n), torch.cos(z * (1 + n / 7))
        seen.append((q, k))
        z = q * k + z
    return seen


def row(q, k):
    return (q * k).sum(-1) ** 2


def reduce(results):
    return torch.stack([result.sum() for result in results]).square().sum()


@pytest.mark.parametrize("scale", [1.0, 4096.0])
def test_it_is_that_of_torch(scale):
    z = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    want = reduce([row(q, k) for q, k in chain(z, 4)])
    loss, got = late_gradient([(row, pair) for pair in chain(z, 4)], reduce, z, scale)
    assert not loss.requires_grad
    assert_close(loss, want.detach(), torch.float64)
    assert_close(got, torch.autograd.grad(want, z)[0], torch.float64)


def test_a_tensor_of_two_layers_and_one_that_is_not_used():
    z = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    (q, k), _ = chain(z, 2)
    want = reduce([row(q, k), row(q, q)])
    (q, k), (other, _) = chain(z, 2)
    _, got = late_gradient([(row, (q, k)), (lambda a, b: row(a, a), (q, other))], reduce, z)
    assert_close(got, torch.autograd.grad(want, z)[0], torch.float64)


def test_the_gradients_of_the_layers_do_not_wait_for_one_another():
    """torch's own way has them all beside the graph, so that what it takes grows by two tensors a layer."""

    def beside_the_graph(late, layers):
        with Counted() as counted:
            z = torch.randn(WIDTH, WIDTH, requires_grad=True)
            seen = chain(z, layers)
            counted.peak = graph = counted.live
            if late:
                late_gradient([(row, pair) for pair in seen], reduce, z)
            else:
                torch.autograd.grad(reduce([row(q, k) for q, k in seen]), z)
        return (counted.peak - graph) / z.nbytes

    assert beside_the_graph(False, 12) - beside_the_graph(False, 6) > 11
    assert beside_the_graph(True, 12) - beside_the_graph(True, 6) < 0.5
