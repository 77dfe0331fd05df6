import math

import pytest
import torch

from weft.kernels import Lists, gather_attention, merged_attention
from weft.kernels.merged_attention import chunked
from weft.kernels.merged_attention.reference import joins, merged
from weft.tests.kernels.sizes import Largest
from weft.tests.numerics import assert_close, assert_gradient

CHECKED = pytest.mark.parametrize("backend", ["reference", "chunked"])
MATCHINGS = pytest.mark.parametrize("matching", ["bipartite", "neighbours"])


def inputs(rows=2, heads=3, queries=7, tokens=30, size=4, length=9, dtype=torch.float64, padding=0.2):
    q = torch.randn(rows, heads, queries, size, dtype=dtype)
    k, v = torch.randn(2, rows, heads, tokens, size, dtype=dtype)
    index = torch.rand(queries, tokens).argsort(-1)[:, :length].int()  # a token twice would be a tie but for rounding
    return q, k, v, index.masked_fill(torch.rand(index.shape) < padding, -1)


def groups_of(keys, going):
    """Places of a list [(place, key)] that become one, in words: of the tokens at even places, those most like one at
    an odd place join it, as many as `going` says; None: neighbours are one."""
    even, odd = ([i for i in keys if i % 2 == rest] for rest in (0, 1))
    if going is None:
        return [[i for i in (j, j + 1) if i in keys] for j in range(0, max(keys, default=-1) + 1, 2)]
    cosine = lambda i, j: torch.cosine_similarity(keys[i], keys[j], dim=0).item()  # noqa: E731
    best = {i: max(odd, key=lambda j: cosine(i, j)) for i in even if odd}
    gone = sorted(best, key=lambda i: -cosine(i, best[i]))[:going]
    return [[j, *(i for i in gone if best[i] == j)] for j in odd] + [[i] for i in even if i not in gone]


def brute_force(q, k, v, index, going, scale):
    out = torch.zeros_like(q)
    for row in range(len(q)):
        for m, listed in enumerate(index.tolist()):
            there = {place: t for place, t in enumerate(listed) if t >= 0}
            groups = groups_of({place: k[row, :, t].flatten() for place, t in there.items()}, going)
            groups = [[there[place] for place in group] for group in groups if group]
            for h in range(q.shape[1]):
                keys, values = ([x[row, h, group].mean(0) for group in groups] for x in (k, v))
                weights = [math.exp(q[row, h, m] @ key * scale) for key in keys]
                for weight, value in zip(weights, values):
                    out[row, h, m] += weight / sum(weights) * value
    return out


@CHECKED
@pytest.mark.parametrize("padding", [0, 0.2, 0.7])
@pytest.mark.parametrize("length", [1, 2, 9, 12])
@pytest.mark.parametrize("ratio", [0.0, 0.2, 0.5, 1.0])
def test_bipartite_is_equation_12_in_words(ratio, length, padding, backend):
    q, k, v, index = inputs(length=length, padding=padding)
    got = merged_attention(q, k, v, index, ratio=ratio, scale=0.7, backend=backend)
    assert_close(got, brute_force(q, k, v, index, int(ratio * length), 0.7))


@CHECKED
@pytest.mark.parametrize("padding", [0, 0.7])
@pytest.mark.parametrize("length", [1, 2, 9, 12])
def test_neighbours_become_their_mean(length, padding, backend):
    q, k, v, index = inputs(length=length, padding=padding)
    got = merged_attention(q, k, v, index, matching="neighbours", backend=backend)
    assert_close(got, brute_force(q, k, v, index, None, 0.5))


@CHECKED
@MATCHINGS
def test_nothing_but_padding_gives_zeros(backend, matching):
    q, k, v, index = inputs()
    index[3] = -1
    k.requires_grad_()
    got = merged_attention(q, k, v, index, matching=matching, backend=backend)
    assert (got[:, :, 3] == 0).all()
    assert torch.autograd.grad(got.sum(), k)[0].isfinite().all()
    assert (merged_attention(q, k, v, index[:, :0], matching=matching, backend=backend) == 0).all()


@CHECKED
def test_nothing_merged_is_plain_attention_along_the_lists(backend):
    q, k, v, index = inputs()
    assert_close(merged_attention(q, k, v, index, ratio=0, backend=backend), gather_attention(q, k, v, index))


@pytest.mark.parametrize(("tokens", "left"), [(57, 29), (27, 14)])
def test_half_of_a_list_is_merged(tokens, left):
    """57 tokens: 20 frames and 3 matches; 27: 10 frames."""
    there = torch.ones(2, 5, tokens, dtype=torch.bool)
    keys = torch.randn(2, 5, tokens, 1, 8)
    _, stay = merged(keys, there, joins(keys.flatten(-2), there, tokens // 2))
    assert (stay.sum(-1) == left).all()


@CHECKED
def test_of_equals_the_lower_place_joins_the_lower_place(backend):
    """Keys of four ones or minus ones have cosines that are exact, and ties abound."""
    q, k, v, index = inputs(heads=1, tokens=40, length=20)
    k = torch.randint(0, 2, k.shape).double() * 2 - 1
    got = merged_attention(q, k, v, index, ratio=0.3, backend=backend)
    assert_close(got, brute_force(q, k, v, index, 6, 0.5))


@MATCHINGS
@pytest.mark.parametrize("budget", [1, 2000, 10**9])
def test_chunks_change_nothing_nor_the_gradient(budget, matching, monkeypatch):
    monkeypatch.setattr(chunked, "gather_budget", lambda device: budget)
    *qkv, index = inputs()
    for x in qkv:
        x.requires_grad_()
    want, got = (merged_attention(*qkv, index, matching=matching, backend=b) for b in ("reference", "chunked"))
    assert_close(got, want)
    weights = torch.randn_like(want)
    for mine, theirs in zip(*(torch.autograd.grad((out * weights).sum(), qkv) for out in (got, want))):
        assert_gradient(mine, theirs)


def test_chunked_never_gathers_everything(monkeypatch):
    monkeypatch.setattr(chunked, "gather_budget", lambda device: 2**14)
    q, k, v, index = inputs(1, 2, 512, 64, 8, 20, torch.float32)
    with Largest() as seen:
        merged_attention(q, k, v, index, backend="chunked")
    assert seen.elements <= 2**14 < 512 * 20 * 2 * 8


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_is_computed_in_float32(dtype):
    q, k, v, index = inputs(dtype=dtype)
    got = merged_attention(q, k, v, index)
    want = merged_attention(q.double(), k.double(), v.double(), index, backend="reference")
    assert got.dtype == dtype
    assert_close(got, want.to(dtype), dtype)


q, k, v, index = inputs()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": q[0], "k": k[0], "v": v[0]}, r"want q \[R H M D\]"),
        ({"q": q[..., :3]}, "equal leading dimensions and D"),
        ({"lists": index[:3]}, r"integers \[7 L\], into 30 tokens; got 3 lists"),
        ({"lists": index + 30}, r"index must lie in \[-1, 30\)"),
        ({"lists": Lists(index, 31)}, "into 30 tokens; got 7 lists into 31"),
        ({"ratio": 1.5}, r"want a ratio in 0..1, got 1.5"),
        ({"matching": "thirds"}, "no matching 'thirds': want one of bipartite, neighbours"),
        ({"backend": "fast"}, "'fast'"),
    ],
    ids=lambda x: next(iter(x)) if isinstance(x, dict) else "",
)
def test_what_does_not_fit_says_why(change, message):
    with pytest.raises(ValueError, match=message):
        merged_attention(**({"q": q, "k": k, "v": v, "lists": index} | change))
