import pytest
import torch

from weft.kernels import attention_map
from weft.kernels.attention_map import fused
from weft.kernels.attention_map.reference import attention_map_reference
from weft.tests.kernels.guards import Guards
from weft.tests.kernels.mutants import fails, mutant
from weft.tests.kernels.tensor_core import assert_within, map_error
from weft.tests.numerics import assert_close

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
SHAPES = [(1, 1, 1, 1, 1), (2, 3, 33, 70, 40), (1, 2, 64, 128, 16), (2, 1, 5, 65, 20), (1, 2, 65, 63, 160)]


def inputs(G, H, P, N, D, dtype):
    return [2 * torch.randn(G, H, n, D, device=DEVICE).to(dtype) for n in (P, N)]


def check(module, shape=(2, 2, 33, 70, 40), dtype=torch.float32):
    q, k = inputs(*shape, dtype)
    with Guards() as g:
        got = module.attention_map_fused(g.input(q), g.input(k), 0.3)
    assert_right(got, q, k, 0.3)


def assert_right(got, q, k, scale):
    want = attention_map_reference(q.double(), k.double(), scale)
    if DEVICE == "cuda":
        assert_within(got, want, map_error(q, k, scale))
    else:
        assert_close(got, want, torch.float32)


@pytest.mark.parametrize("again", range(3))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_fused_is_the_reference(shape, dtype, again):
    """Inputs are what they are in any dtype, logits and softmax are float32: one tolerance for all."""
    check(fused, shape, dtype)


def test_chosen_rows_of_strided_inputs():
    q, k = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in inputs(2, 3, 33, 33, 24, torch.float16))
    rows = torch.tensor([32, 0, 7, 7], device=DEVICE)
    assert_right(attention_map(q, k, rows=rows, backend="triton"), q[:, :, rows], k, 24**-0.5)


def test_what_the_kernel_cannot_do_is_refused():
    q, k = inputs(1, 1, 3, 3, 161, torch.float32)
    with pytest.raises(ValueError, match="head size 161 is over 160"):
        attention_map(q, k, backend="triton")
    assert attention_map(q, k).shape == (1, 3, 3)


@pytest.mark.skipif(DEVICE == "cuda", reason="a mutant reads outside its buffers")
@pytest.mark.parametrize(
    ("change", "dies"),
    [
        (("# [BP]\n", "# [BP] \n"), False),
        (("mask=(o_r[:, None] < R) & (", "mask=("), True),
        (('tl.where(o_n[None, :] < N, b_z, float("-inf"))', "b_z"), True),
        (("b_out / H, mask=(o_p[:, None] < P) & (", "b_out / H, mask=("), True),
        (("b_sum * tl.exp2(b_max - b_new)", "b_sum"), True),
        (("(o_d[None, :] < D), other=0.0", "(o_d[None, :] <= D), other=0.0"), True),
    ],
    ids=["control", "rows", "columns", "store", "rescale", "channels"],
)
def test_the_checks_can_fail(change, dies, tmp_path):
    assert fails(check, mutant(fused, *change, tmp_path)) == dies
