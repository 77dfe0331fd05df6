"""The splitter of a step's time: what counts as a product, and that each can be tried again."""

import torch

from weft.benchmarks.split import Products, Steps, least


def seen(call):
    with Products() as products:
        call()
    return products.count


def test_products_are_counted_by_what_they_are_given():
    a, b = torch.randn(3, 4), torch.randn(4, 5)
    count = seen(lambda: (a @ b, a @ b, a.T @ a, a + 1))
    assert sorted(count.values()) == [1, 2]
    assert sum(n * product.flops for product, n in count.items()) == 2 * 2 * 3 * 4 * 5 + 2 * 4 * 3 * 4


def test_attention_counts_forward_and_backward():
    q = torch.randn(2, 3, 8, 16, requires_grad=True)
    count = seen(lambda: torch.nn.functional.scaled_dot_product_attention(q, q, q).sum().backward())
    forward = 4 * 2 * 3 * 8 * 8 * 16
    assert sorted(product.flops for product in count) == [forward, 10 * forward // 4]


def test_everything_that_is_counted_can_be_tried_again():
    """An index is made anew too, and must lie in what it points into; a tensor that is no block of memory stays one."""
    x, index = torch.randn(4, 6), torch.tensor([5, 0, 3])
    calls = [
        lambda: x.index_select(1, index),
        lambda: x.gather(1, index.expand(4, 3)),
        lambda: torch.zeros(4, 6).scatter_add(1, index.expand(4, 3), x[:, :3]),
        lambda: x.max(-1),
        lambda: x.sort(-1),
        lambda: x.softmax(-1),
        lambda: torch.baddbmm(torch.zeros(1, 4, 4).expand(2, 4, 4), x.expand(2, 4, 6), x.T.expand(2, 6, 4)),
        lambda: torch.nn.functional.conv2d(x.view(1, 1, 4, 6), torch.ones(1, 1, 3, 3)),
    ]
    for call in calls:
        count = seen(call)
        assert count, call
        assert all(product.seconds() >= 0 for product in count)


def test_the_least_of_some_calls_counts():
    calls = []
    assert least(lambda: calls.append(sum(range(1000))), 0.01) < 0.01
    assert len(calls) > 1


def test_steps_two_and_three_are_timed():
    steps = Steps()
    for done in (1, 2):
        steps.progress(done, 9)
    assert len(steps.seconds) == 1
