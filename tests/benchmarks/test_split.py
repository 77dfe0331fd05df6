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
    assert sorted(product.flops for product in count if product.flops) == [forward, 10 * forward // 4]


def test_what_a_formula_looks_for_or_adds_up_is_counted_and_nothing_else():
    x, index = torch.randn(4, 6), torch.tensor([3, 0, 3])
    calls = [
        lambda: x.index_select(0, index),
        lambda: x.gather(1, index.expand(4, 3)),
        lambda: torch.zeros(4, 6).scatter_add(1, index.expand(4, 3), x[:, :3]),
        lambda: x.max(-1),
        lambda: x.sort(-1),
        lambda: x.softmax(-1),
        lambda: x.mean(-1),
        lambda: torch.nn.functional.conv2d(x.view(1, 1, 4, 6), torch.ones(1, 1, 3, 3)),
    ]
    assert [seen(call).total() for call in calls] == [1] * len(calls)
    assert not seen(lambda: (x.amax(-1), x + x, x.clone(), x.masked_fill(x < 0, 0.0), torch.cat([x, x])))


def test_products_are_timed_where_they_stand():
    small, large = torch.randn(2, 2), torch.randn(400, 400)
    with Products() as products:
        for x in (small, large, large):
            x @ x
    price = {product.given[0].shape[0]: seconds for product, seconds in products.prices().items()}
    assert 0 <= price[2] < price[400] < 1


def test_the_least_of_some_calls_counts():
    calls = []
    assert least(lambda: calls.append(sum(range(1000))), 0.01) < 0.01
    assert len(calls) > 1


def test_steps_two_and_three_are_timed():
    steps = Steps()
    for done in (1, 2):
        steps.progress(done, 9)
    assert len(steps.seconds) == 1
