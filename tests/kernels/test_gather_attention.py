import math

import pytest
import torch

from weft.kernels import Lists, merged_attention
from weft.kernels.gather_attention import chunked, gather_attention
from weft.tests.kernels.sizes import Largest, Operations
from weft.tests.numerics import assert_close, assert_gradient

CHECKED = pytest.mark.parametrize("backend", ["reference", "chunked"])


def inputs(rows=(2,), queries=7, tokens=12, size=5, length=6, dtype=torch.float64):
    q = torch.randn(*rows, queries, size, dtype=dtype)
    k, v = torch.randn(2, *rows, tokens, size, dtype=dtype)
    return q, k, v, torch.randint(-1, tokens, (queries, length), dtype=torch.int32)


def brute_force(q, k, v, index, scale):
    """The attention of each query to the tokens of its list, one number at a time."""
    out = torch.zeros_like(q)
    for row in range(len(q)):
        for m, places in enumerate(index.tolist()):
            places = [t for t in places if t >= 0]
            weights = [math.exp(sum((q[row, m] * k[row, t]).tolist()) * scale) for t in places]
            for w, t in zip(weights, places):
                out[row, m] += w / sum(weights) * v[row, t]
    return out


@CHECKED
@pytest.mark.parametrize("scale", [None, 0.7])
def test_equals_attention_by_brute_force(scale, backend):
    q, k, v, index = inputs()
    got = gather_attention(q, k, v, index, scale=scale, backend=backend)
    assert_close(got, brute_force(q, k, v, index, 5**-0.5 if scale is None else scale))


@CHECKED
def test_padding_is_ignored_and_nothing_but_padding_gives_zeros(backend):
    q, k, v, index = inputs()
    index[3] = -1
    k.requires_grad_()
    got = gather_attention(q, k, v, index, backend=backend)
    assert (got[:, 3] == 0).all()
    assert got.detach().isfinite().all()
    (gradient,) = torch.autograd.grad(got.sum(), k)
    assert gradient.isfinite().all()
    padded = torch.cat([torch.full((7, 4), -1), index], dim=1)
    assert_close(gather_attention(q, k, v, padded, backend=backend), got)
    assert (gather_attention(q, k, v, torch.empty(7, 0, dtype=torch.int64), backend=backend) == 0).all()


@CHECKED
def test_lists_of_everything_are_full_attention(backend):
    q, k, v, _ = inputs(rows=(2, 3))
    everything = torch.arange(12).repeat(7, 1)
    want = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    assert_close(gather_attention(q, k, v, everything, backend=backend), want)


@CHECKED
def test_order_does_not_matter_and_repetition_counts(backend):
    q, k, v, index = inputs()
    want = gather_attention(q, k, v, index, backend=backend)
    assert_close(gather_attention(q, k, v, index.flip(1), backend=backend), want)
    assert_close(gather_attention(q, k, v, index.repeat(1, 3), backend=backend), want)
    two, one = torch.tensor([[1, 1, 2]] * 7), torch.tensor([[1, 2]] * 7)
    assert not torch.allclose(
        gather_attention(q, k, v, two, backend=backend), gather_attention(q, k, v, one, backend=backend)
    )


@pytest.mark.parametrize("budget", [1, 200, 10**9])
def test_chunks_change_nothing(budget, monkeypatch):
    monkeypatch.setattr(chunked, "gather_budget", lambda device: budget)
    *qkv, index = inputs()
    for x in qkv:
        x.requires_grad_()
    want = gather_attention(*qkv, index, backend="reference")
    got = gather_attention(*qkv, index, backend="chunked")
    assert_close(got, want)
    weights = torch.randn_like(want)
    gradients = zip(*(torch.autograd.grad((out * weights).sum(), qkv) for out in (got, want)))
    for mine, theirs in gradients:
        assert_gradient(mine, theirs)


@pytest.mark.parametrize("attention", [gather_attention, merged_attention])
def test_lists_without_padding_take_no_masks_and_no_softmax_is_narrower_than_a_vector(attention):
    """Of fewer than 16 entries torch's softmax is many times as slow on a CPU."""
    q, k, v, index = inputs(rows=(2, 3))
    padded = index.clone()
    padded[0, 0] = -1
    masks = []
    for lists in (Lists(index.clamp(min=0), 12), Lists(padded, 12)):
        with Operations() as seen:
            attention(q, k, v, lists, backend="chunked")
        masks.append(seen.count["masked_fill"] + seen.count["masked_fill_"])
        assert seen.width == chunked.VECTOR > index.shape[1]
    assert masks[0] < masks[1]


def test_lists_know_whether_they_are_full():
    index = torch.tensor([[0, 1], [2, 0]])
    assert Lists(index, 3).full
    assert not Lists(index - 1, 3).full
    assert not Lists(index - 1, 3).to(torch.device("cpu")).full


def test_chunked_never_gathers_everything(monkeypatch):
    monkeypatch.setattr(chunked, "gather_budget", lambda device: 2**12)
    q, k, v, index = inputs(queries=512, tokens=64, size=8, length=20, dtype=torch.float32)
    with Largest() as seen:
        gather_attention(q, k, v, index, backend="chunked")
    assert seen.elements <= 512 * 20 < 2 * 512 * 20 * 8


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_is_computed_in_float32(dtype):
    q, k, v, index = inputs(dtype=dtype)
    got = gather_attention(q, k, v, index)
    want = gather_attention(q.double(), k.double(), v.double(), index, backend="reference")
    assert got.dtype == dtype
    assert_close(got, want.to(dtype), dtype)


q, k, v, index = inputs()
index[0, 0], index[0, 1] = -1, 11  # the whole range occurs


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": q[:1]}, "equal leading dimensions"),
        ({"q": q[..., :3]}, "equal leading dimensions and D"),
        ({"v": v[:, :3]}, "equal leading"),
        ({"k": k.float()}, "one floating-point dtype"),
        ({"index": index[:3]}, r"one list of token indices per query, integers \[7 L\]"),
        ({"index": index.float()}, "integers"),
        ({"index": index + 12}, r"index must lie in \[-1, 12\), but holds"),
        ({"index": index - 2}, r"index must lie in \[-1, 12\), but holds -"),
        ({"index": Lists(index, 13)}, r"into 12 tokens; got 7 lists into 13"),
        ({"backend": "fast"}, "'fast'"),
    ],
    ids=lambda x: next(iter(x)) if isinstance(x, dict) else "",
)
def test_what_does_not_fit_says_why(change, message):
    fitting = {"q": q, "k": k, "v": v, "index": index}
    options = fitting | change
    with pytest.raises(ValueError, match=message):
        gather_attention(lists=options.pop("index"), **options)


def test_mixed_devices_are_refused():
    with pytest.raises(ValueError, match="q is on cpu, but k and v are on meta and cpu"):
        gather_attention(q, k.to("meta"), v, index)
