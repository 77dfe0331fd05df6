from contextlib import ExitStack
from inspect import signature
from unittest.mock import patch

import pytest
import torch

from weft.kernels import str_loss
from weft.kernels.attention_map import fused as attention_map_fused
from weft.kernels.attention_map import fused_backward
from weft.kernels.str_loss import fused, fused_loss, reduce_rows, sweep
from weft.kernels.str_loss.reference import rows_reference
from weft.tests.kernels.guards import Guards
from weft.tests.kernels.mutants import fails, mutant
from weft.tests.numerics import CLOSE, assert_close, assert_gradient, assert_no_worse

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
SHAPES = [(2, 7, 1, 5, 1), (3, 33, 2, 24, 1), (2, 32, 1, 64, 2), (5, 19, 1, 40, 2)]  # F N H D neighbours


def side(F, N, H, D, dtype):
    q, k = 2 * torch.randn(2, F, H, N, D, device=DEVICE).to(dtype)
    return q, k, torch.randn(N, F, F, device=DEVICE).softmax(-1)


def check(module, shape=(4, 33, 1, 20, 1), dtype=torch.float32, size=1.0, wanted=(True, True), together=1):
    """Rows, and their gradient for an arbitrary loss, against autograd through the reference in float64."""
    *dims, neighbours = shape
    source, target = side(*dims, dtype), side(*dims, dtype)
    grad = size * torch.randn(*target[2].shape[1:2], target[2].shape[0], 3, device=DEVICE)
    exact = [x.double().requires_grad_() for x in target]
    want = rows_reference([x.double() for x in source], exact, neighbours, 0.2)
    (want * grad).sum().backward()
    with Guards() as g, patch.object(module, "together", lambda frames, N: min(together, frames)):
        fenced = [[g.input(x) for x in one] for one in (source, target)]
        rows = module.rows_fused(*fenced, neighbours, 0.2)
        *maps, dt = module.rows_fused_backward(*fenced, neighbours, 0.2, g.input(grad), *wanted)
    assert_close(rows, want.detach(), torch.float32)
    if wanted[0]:
        for got, leaf in zip(maps, exact):
            assert got.dtype == dtype
            assert_gradient(got.double(), leaf.grad, limit=CLOSE[dtype][0])
    if wanted[1]:
        assert_gradient(dt.double(), exact[2].grad, limit=CLOSE[torch.float32][0])


@pytest.mark.parametrize("together", [1, 2, 99])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_fused_is_the_reference(shape, dtype, together):
    """However many frames a launch takes."""
    check(fused, shape, dtype, together=together)


def test_small_frames_go_together_and_large_ones_alone():
    assert [fused.together(16, N) for N in (40, 640, 1024, 1025, 2560, 4096)] == [16, 16, 16, 1, 1, 1]


def check_loss(module, shape=(4, 33, 1, 20, 1), dtype=torch.float32, wanted=(True, True), together=1):
    """Rows, and the gradient of the loss of rows, against autograd through the reference in float64."""
    *dims, neighbours = shape
    source, target = side(*dims, dtype), side(*dims, dtype)
    exact = [x.double().requires_grad_() for x in target]
    want = rows_reference([x.double() for x in source], exact, neighbours, 0.2)
    reduce_rows(want).backward()
    with Guards() as g, patch.object(module, "together", lambda frames, N: min(together, frames)):
        fenced = [[g.input(x) for x in one] for one in (source, target)]
        rows, *maps, dt = module.loss_fused(*fenced, neighbours, 0.2, *wanted)
    assert_close(rows, want.detach(), torch.float32)
    for got, leaf in zip(maps, exact) if wanted[0] else ():
        assert got.dtype == dtype
        assert_gradient(got.double(), leaf.grad, limit=CLOSE[dtype][0])
    if wanted[1]:
        assert_gradient(dt.double(), exact[2].grad, limit=CLOSE[torch.float32][0])


@pytest.mark.parametrize("together", [1, 99])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_one_sweep_is_the_reference(shape, dtype, together):
    check_loss(fused_loss, shape, dtype, together=together)


@pytest.mark.parametrize("wanted", [(True, False), (False, True)], ids=["maps", "weights"])
def test_one_sweep_makes_only_what_is_wanted(wanted):
    check_loss(fused_loss, SHAPES[1], wanted=wanted)


def test_one_sweep_through_autograd():
    sides = [*side(3, 17, 2, 16, torch.float32), *side(3, 17, 2, 16, torch.float32)]
    sides[5] = torch.cat([torch.eye(3, device=DEVICE)[None], sides[5][1:]])  # a score that vanishes here and there
    results = []
    for options in ({"backend": "triton", "sweeps": 1}, {"backend": "chunked"}):
        leaves = [x.clone().requires_grad_(n in (3, 4)) for n, x in enumerate(sides)]
        loss, rows = str_loss(*leaves, **options)
        (3 * loss).backward()
        results.append((loss.detach(), rows.detach(), leaves[3].grad, leaves[4].grad))
        assert leaves[5].grad is None
    for got, want in zip(*results):
        assert_gradient(got, want, limit=CLOSE[torch.float32][0])


@pytest.mark.skipif(DEVICE == "cuda", reason="a mutant reads outside its buffers")
@pytest.mark.parametrize(
    ("old", "new", "dies"),
    [
        ("# all [B B], pixels", "# all  [B B], pixels", False),
        ("b_q * b_s + b_q_back * b_s_t\n", "b_q * b_s + b_q * b_s_t\n", True),
        ("b_p * b_s_t + b_p_back * b_s\n", "b_p * b_s + b_p_back * b_s_t\n", True),
        ("b_two = -b_one * (b_ab / b_bb)", "b_two = b_one * (b_ab / b_bb)", True),
        ("b_ds_back += weight(t, j, i, o_q", "b_ds_back += weight(t, i, j, o_q", True),
        ("tl.sum(b_back * b_near_t + b_there * b_s, 0)", "tl.sum(b_back * b_near_t, 0)", True),
        ("Ring(*target, scale, S + 3 * R)", "Ring(*target, scale, S + 2 * R)", True),
    ],
    ids=["control", "score", "partner", "weights", "maps", "temporal", "ring"],
)
def test_the_checks_of_one_sweep_can_fail(old, new, dies, tmp_path):
    assert fails(check_loss, mutant(fused_loss, old, new, tmp_path)) == dies


@pytest.mark.parametrize("size", [10, 45])
def test_large_logits_err_as_plain_torch_does(size):
    """At 45 logits reach 1e4, where float32 steps by 1e-3: in every exponential, but not in the sum of a row."""
    sides = [*side(3, 33, 2, 24, torch.float32), *side(3, 33, 2, 24, torch.float32)]
    for n in (0, 1, 3, 4):
        sides[n] *= size / 2
    gradients = {}
    for backend, dtype in (("reference", torch.float64), ("chunked", torch.float32), ("triton", torch.float32)):
        leaves = [x.to(dtype).requires_grad_(n > 2) for n, x in enumerate(sides)]
        str_loss(*leaves, backend=backend)[0].backward()
        gradients[backend] = [x.grad for x in leaves[3:]]
    for exact, plain, got in zip(*gradients.values()):
        largest = exact.abs().max()
        assert_no_worse(got / largest, plain / largest, exact / largest, times=4)


class Launches:
    """Stands in for a kernel and keeps what Triton compiles it for: how its arguments are aligned and divide by 16."""

    def __init__(self, kernel):
        self.kernel, self.names = kernel, list(signature(kernel.fn).parameters)
        self.variants, self.count = set(), 0

    def __getitem__(self, grid):
        def launch(*args, **meta):
            numbers = [x for name, x in zip(self.names, args) if isinstance(x, int) and name != "first"]
            aligned = [x.data_ptr() % 16 == 0 for x in args if isinstance(x, torch.Tensor)]
            self.variants.add((*aligned, *((n == 1, n % 16 == 0) for n in numbers)))
            self.count += 1
            return self.kernel[grid](*args, **meta)

        return launch


@pytest.mark.parametrize("together", [1, 2, 99])
def test_a_kernel_is_compiled_once_and_launched_once_for_frames_that_go_together(together):
    """33 tokens: the maps of every second frame start at an address that is not a multiple of 16 bytes."""
    modules = {fused: ("rows", "g", "gather"), attention_map_fused: ("normaliser", "map"), fused_backward: ("dq", "dk")}
    kernels = {(m, f"{name}_kernel"): None for m, names in modules.items() for name in names}
    with ExitStack() as stack:
        for module, name in kernels:
            kernels[module, name] = Launches(getattr(module, name))
            stack.enter_context(patch.object(module, name, kernels[module, name]))
        check(fused, (4, 33, 1, 20, 1), together=together)
    stretches = -(-4 // together)
    for (_, name), kernel in kernels.items():
        assert len(kernel.variants) == 1, name
        assert kernel.count <= (
            4 if name == "normaliser_kernel" else 4 * stretches if name == "map_kernel" else stretches
        )


@pytest.mark.parametrize("wanted", [(True, False), (False, True)], ids=["maps", "weights"])
def test_only_what_is_wanted(wanted):
    check(fused, SHAPES[1], wanted=wanted)


@pytest.mark.parametrize("size", [1e-3, 1e3])
def test_float16_holds_small_and_large_gradients(size):
    """What leaves is float16 too, so the inside must not be what loses it: D = 24 gives dq of about `size` / 100."""
    check(fused, SHAPES[1], torch.bfloat16, size)
    check(fused, SHAPES[1], torch.float16, size)


@pytest.mark.parametrize("per_head", [False, True], ids=["mean", "per_head"])
def test_the_loss_through_autograd(per_head):
    sides = [*side(3, 17, 2, 16, torch.float32), *side(3, 17, 2, 16, torch.float32)]
    if per_head:
        sides[2], sides[5] = torch.randn(2, 2, 17, 3, 3, device=DEVICE).softmax(-1)
    losses, grads = [], []
    for backend in ("triton", "chunked"):
        leaves = [x.clone().requires_grad_(n > 2) for n, x in enumerate(sides)]
        loss, _ = str_loss(*leaves, per_head=per_head, backend=backend)
        loss.backward()
        losses.append(loss.detach())
        grads.append([x.grad for x in leaves[3:]])
    assert_close(*losses)
    for got, want in zip(*grads):
        assert_gradient(got, want, limit=CLOSE[torch.float32][0])


def test_a_score_of_zero_gives_no_gradient():
    sides = [*side(3, 7, 1, 16, torch.float16), *side(3, 7, 1, 16, torch.float16)]
    sides[5] = torch.eye(3, device=DEVICE).expand(7, 3, 3)
    leaves = [x.clone().requires_grad_(n > 2) for n, x in enumerate(sides)]
    loss, _ = str_loss(*leaves, backend="triton")
    loss.backward()
    assert loss == 0
    assert all((x.grad == 0).all() for x in leaves[3:])


def test_what_the_kernels_cannot_do_is_refused():
    sides = [*side(5, 7, 1, 16, torch.float32), *side(5, 7, 1, 16, torch.float32)]
    with pytest.raises(ValueError, match="3 neighbours on each side are over 2"):
        str_loss(*sides, neighbours=3, backend="triton")
    with pytest.raises(ValueError, match="not float64"):
        str_loss(*(x.double() for x in sides), backend="triton")


@pytest.mark.skipif(DEVICE == "cuda", reason="a mutant reads outside its buffers")
@pytest.mark.parametrize(
    ("old", "new", "dies"),
    [
        ("# [BP BQ]\n", "# [BP BQ] \n", False),
        (
            "limit = tl.where((j >= 0) & (j < F), N, 0)\n            #",
            "limit = tl.where(j < F, N, 0)\n            #",
            True,
        ),
        (
            "there = (o_p[:, None] < limit) & (o_q[None, :] < limit)\n    return tl.load(base + (o_p",
            "there = o_p[:, None] < limit\n    return tl.load(base + (o_p",
            True,
        ),
        (
            "weight(t, j, i, o_q, limit, F, N)[None, :] * b_s_t",
            "weight(t, i, j, o_q, limit, F, N)[None, :] * b_s_t",
            True,
        ),
        ("2 * b_bb[:, None]", "b_bb[:, None]", True),
        ("* (b_g_t + b_h)", "* b_g_t", True),
        ("Ring(*target, scale, S + 3 * R)", "Ring(*target, scale, S + 2 * R)", True),
        ("(b_g + b_h_t) * b_near + b_h * b_s_t", "(b_g + b_h_t) * b_near", True),
        ("slot = e + R - (e > 0)", "slot = e + R", True),
    ],
    ids=["control", "frames", "pixels", "algebra", "factor", "transpose", "ring", "weights", "slot"],
)
def test_the_checks_can_fail(old, new, dies, tmp_path):
    assert fails(check, mutant(fused, old, new, tmp_path)) == dies


@pytest.mark.skipif(DEVICE == "cuda", reason="a mutant reads outside its buffers")
@pytest.mark.parametrize(
    ("old", "new", "dies"),
    [
        ("# [BN BP]\n", "# [BN BP] \n", False),
        ("- b_d[:, None]), 0.0)", "), 0.0)", True),
        ("- b_d[None, :]), 0.0)", "), 0.0)", True),
        ("b_dk1 * (scale / stretch)", "b_dk1 * scale", True),
        ("inside = (o_n[:, None] < N) & (o_p[None, :] < N)", "inside = o_p[None, :] < N", True),
    ],
    ids=["control", "D of dq", "D of dk", "stretch", "mask"],
)
def test_the_checks_of_the_map_gradient_can_fail(old, new, dies, tmp_path, monkeypatch):
    changed = mutant(fused_backward, old, new, tmp_path)
    monkeypatch.setattr(sweep, "mean_maps_backward", changed.mean_maps_backward)
    assert fails(check, fused) == dies
