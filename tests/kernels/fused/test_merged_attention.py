import pytest
import torch

from weft.kernels import merged_attention
from weft.kernels.merged_attention import fused as kernel
from weft.tests.kernels.guards import Guards
from weft.tests.kernels.mutants import mutant
from weft.tests.numerics import assert_close, assert_no_worse

device = "cuda" if torch.cuda.is_available() else "cpu"

CASES = [  # rows, heads, queries, tokens, D, length of the lists
    (1, 2, 4, 40, 16, 32),  # everything on the tile
    (2, 3, 5, 60, 20, 9),
    (1, 8, 3, 80, 40, 57),
    (2, 1, 3, 30, 7, 3),
    (1, 2, 2, 90, 80, 65),  # more places than one tile of 32
    (1, 1, 2, 300, 160, 131),
    (1, 1, 1, 1, 16, 1),
]


def inputs(rows, heads, queries, tokens, size, length, padding=0.2):
    q = torch.randn(rows, heads, queries, size, device=device)
    k, v = torch.randn(2, rows, heads, tokens, size, device=device)
    index = torch.rand(queries, tokens, device=device).argsort(-1)[:, :length].int()
    return q, k, v, index.masked_fill(torch.rand(index.shape, device=device) < padding, -1)


def compare(q, k, v, index, close=True, **options):
    with Guards() as g:
        fenced = [g.input(x) for x in (q, k)]
        values = fenced[1] if v is k else g.input(v)
        got = merged_attention(*fenced, values, g.input(index), backend="triton", **options)
    plain = merged_attention(q, k, v, index, backend="reference", **options)
    exact = merged_attention(q.double(), k.double(), v.double(), index, backend="reference", **options)
    if close:
        assert_close(got, plain, q.dtype)
    if q.dtype != torch.bfloat16 or q.is_cuda:  # the interpreter cuts float32 to bfloat16 instead of rounding it
        assert_no_worse(got, plain, exact)


@pytest.mark.parametrize("matching", ["bipartite", "neighbours"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_matches_the_reference(case, dtype, matching):
    *qkv, index = inputs(*case)
    compare(*(x.to(dtype) for x in qkv), index, matching=matching)


@pytest.mark.parametrize("ratio", [0.0, 0.3, 0.8, 1.0])
def test_ratios_and_padding(ratio):
    for padding in (0, 0.5, 1):
        compare(*inputs(2, 2, 4, 40, 12, 21, padding), ratio=ratio, scale=0.5)


def test_views_long_indices_and_empty_lists():
    q, k, v, index = inputs(2, 2, 9, 40, 24, 21)
    compare(*(x[..., ::2] for x in (q, k, v)), index[:, ::3].long())
    compare(q, k, k, index)
    assert (merged_attention(q, k, v, index[:, :0], backend="triton") == 0).all()


def test_large_logits_do_not_overflow():
    """A logit of 500 is rounded by 3e-5 in float32, here as in plain torch."""
    q, k, v, index = inputs(1, 2, 5, 40, 24, 30)
    compare(300 * q, k, v, index, close=False)
    compare(-300 * q, k, v, index, close=False)


def test_of_equals_the_lower_place_joins_the_lower_place():
    """Sums of a few ones and minus ones are exact on every unit; the CPU's reference takes the first of equals."""
    q, _, v, index = inputs(1, 1, 6, 40, 4, 24)
    k = torch.randint(0, 2, v.shape, device=device).float() * 2 - 1
    want = merged_attention(q.cpu(), k.cpu(), v.cpu(), index.cpu(), ratio=0.3, backend="reference")
    assert_close(merged_attention(q, k, v, index, ratio=0.3, backend="triton").cpu(), want)


def test_what_the_kernel_cannot_do_says_why():
    q, k, v, index = inputs(1, 1, 2, 4, 300, 3)
    with pytest.raises(ValueError, match="head size 300 is over 256"):
        merged_attention(q, k, v, index, backend="triton")
    q, k, v, index = inputs(1, 1, 2, 300, 8, 257)
    with pytest.raises(ValueError, match="a list of 257 tokens is over 256"):
        merged_attention(q, k, v, index, backend="triton")
    assert merged_attention(q, k, v, index).shape == q.shape
    q.requires_grad_()
    with pytest.raises(ValueError, match="no backward"):
        merged_attention(q, k, v, index[:, :3], backend="triton")


def exercise():
    q, k, v, index = inputs(2, 3, 5, 60, 20, 41)
    index[4] = -1
    compare(4 * q, k, v, index)
    compare(q, k, v, index, matching="neighbours")
    test_of_equals_the_lower_place_joins_the_lower_place()


@pytest.mark.skipif(device == "cuda", reason="a mutant reads outside its buffers")
@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("mask=(b_i >= 0)[:, None] & (o_c < WIDTH)[None, :]", "mask=(o_c < WIDTH)[None, :]"),
        ("mask=(b_i >= 0)[:, None] & (o_c < WIDTH)[None, :]", "mask=(b_i >= 0)[:, None]"),
        ("mask=2 * o_p + 1 < L", "mask=2 * o_p < L"),
        ("even_there[:, None] & odd_there[None, :], b_s", "even_there[:, None], b_s"),
        ('b_s *= tl.load(shrink + b_io, mask=odd_there, other=0.0)[None, :]', "pass"),
        (") < going)", ") <= going)"),
        (" | (\n            (b_best[None, :] == b_best[:, None]) & (o_p[None, :] < o_p[:, None])\n        )", ""),
        ("gone = even_there & odd_there", "gone = even_there"),
        ("1.0 + tl.sum(b_join, 0)", "1.0"),
        ("stays = even_there & (gone == 0)", "stays = even_there"),
        ("b_we += tl.sum(b_join * b_wo[None, :], 1)", "pass"),
        ("total = tl.where(total > 0.0, total, 1.0)", "pass"),
        ("k += row * T * C", "pass"),
        ("shrink += row * T\n", "pass\n"),
        (" * 1.4426950408889634)", ")"),
    ],
    ids=range(15),
)  # fmt: skip
def test_a_wrong_kernel_is_caught(old, new, monkeypatch, tmp_path):
    changed = mutant(kernel, old, new, tmp_path)
    monkeypatch.setattr(kernel, "merged_attention_fused", changed.merged_attention_fused)
    with pytest.raises(AssertionError):
        exercise()


def test_the_same_kernel_rewritten_is_not(monkeypatch, tmp_path):
    same = mutant(kernel, "b_ze = tl.where(stays, b_ze, lowest)", "b_ze = tl.where(stays, 1 * b_ze, lowest)", tmp_path)
    monkeypatch.setattr(kernel, "merged_attention_fused", same.merged_attention_fused)
    exercise()
