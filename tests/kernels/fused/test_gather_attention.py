import pytest
import torch

from weft.kernels.gather_attention import fused as kernel
from weft.kernels.gather_attention import gather_attention
from weft.tests.kernels.guards import Guards
from weft.tests.kernels.mutants import mutant
from weft.tests.numerics import assert_close, assert_no_worse

device = "cuda" if torch.cuda.is_available() else "cpu"

CASES = [  # leading dimensions, queries, tokens, D, length of the lists
    ((2,), 8, 32, 64, 16),  # everything on the tile
    ((2, 3), 7, 11, 40, 19),
    ((1,), 33, 50, 7, 57),
    ((2,), 5, 9, 80, 3),
    ((1,), 3, 20, 160, 13),
    ((1,), 1, 1, 16, 1),
]


def inputs(rows, queries, tokens, size, length):
    q = torch.randn(*rows, queries, size, device=device)
    k, v = torch.randn(2, *rows, tokens, size, device=device)
    return q, k, v, torch.randint(-1, tokens, (queries, length), dtype=torch.int32, device=device)


def compare(q, k, v, index, **options):
    with Guards() as g:
        got = gather_attention(g.input(q), g.input(k), g.input(v), g.input(index), backend="triton", **options)
    plain = gather_attention(q, k, v, index, backend="reference", **options)
    exact = gather_attention(q.double(), k.double(), v.double(), index, backend="reference", **options)
    assert_close(got, plain, q.dtype)
    if q.dtype != torch.bfloat16 or q.is_cuda:  # the interpreter cuts float32 to bfloat16 instead of rounding it
        assert_no_worse(got, plain, exact)


@pytest.mark.parametrize("attempt", range(3))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_matches_the_reference(case, dtype, attempt):
    *qkv, index = inputs(*case)
    compare(*(x.to(dtype) for x in qkv), index)


def test_padding_views_scale_and_long_indices():
    q, k, v, index = inputs((2,), 9, 31, 24, 21)
    index[4] = -1
    index[5, 1:] = -1
    index[6, :20] = -1
    compare(q, k, v, index, scale=1.3)
    compare(*(x[..., ::2] for x in (q, k, v)), index[:, ::3].long())
    assert (gather_attention(q, k, v, index, backend="triton")[:, 4] == 0).all()
    assert (gather_attention(q, k, v, index[:, :0], backend="triton") == 0).all()


def test_large_logits_do_not_overflow():
    q, k, v, index = inputs((1,), 9, 31, 24, 40)
    compare(300 * q, k, v, index)
    compare(-300 * q, k, v, index)


def test_what_the_kernel_cannot_do_says_why():
    q, k, v, index = inputs((1,), 2, 4, 300, 3)
    with pytest.raises(ValueError, match="head size 300 is over 256"):
        gather_attention(q, k, v, index, backend="triton")
    q, k, v, index = inputs((1,), 2, 4, 8, 3)
    q.requires_grad_()
    with pytest.raises(ValueError, match="no backward"):
        gather_attention(q, k, v, index, backend="triton")
    gather_attention(q, k, v, index).sum().backward()
    with torch.no_grad():
        gather_attention(q, k, v, index, backend="triton")


def exercise():
    q, k, v, index = inputs((2,), 9, 31, 24, 40)
    index[:, 0] = 0
    index[4] = -1
    compare(4 * q, k, v, index)
    compare(q, k, v, index[:, :0])


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("wanted = listed[:, :, None] &", "wanted ="),
        ("tl.where(listed, tl.sum(b_q[:, None, :] * b_k, 2), lowest)", "tl.sum(b_q[:, None, :] * b_k, 2)"),
        ("b_acc = b_acc * b_fix[:, None]", "b_acc = b_acc"),
        ("b_sum = b_sum * b_fix", "b_sum = b_sum"),
        (" * (scale * 1.4426950408889634)", " * scale"),
        ("k += row * T * D", "k += 0"),
        ("here = (o_m[:, None] < M) &", "here ="),
        ("(o_m[:, None] < M) & (o_l[None, :] < L)", "(o_m[:, None] < M)"),
        ("b_out = b_acc / tl.where(b_sum > 0.0, b_sum, 1.0)[:, None]", "b_out = b_acc / b_sum[:, None]"),
    ],
    ids=range(9),
)
def test_a_wrong_kernel_is_caught(old, new, monkeypatch, tmp_path):
    changed = mutant(kernel, old, new, tmp_path)
    monkeypatch.setattr(kernel, "gather_attention_fused", changed.gather_attention_fused)
    with pytest.raises(AssertionError):
        exercise()


def test_the_same_kernel_rewritten_is_not(monkeypatch, tmp_path):
    same = mutant(kernel, "b_sum = b_sum * b_fix", "b_sum = b_fix * b_sum", tmp_path)
    monkeypatch.setattr(kernel, "gather_attention_fused", same.gather_attention_fused)
    exercise()
