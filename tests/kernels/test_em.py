import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from weft.kernels.em import chunked, em_attention, em_bases, em_step, em_values
from weft.kernels.em.reference import directions
from weft.tests.kernels.sizes import Largest
from weft.tests.numerics import assert_close

CHECKED = pytest.mark.parametrize("backend", ["reference", "chunked"])


def inputs(rows=(2,), tokens=23, bases=6, size=5, dtype=torch.float64):
    return torch.randn(*rows, tokens, size, dtype=dtype), torch.randn(*rows, bases, size, dtype=dtype)


def brute_force(tokens, values, bases, temperature, eps):
    """STEM's E- and M-step for one head, one number at a time: new value of each base, mass, Z."""
    z = []
    for x in tokens.tolist():
        logits = []
        for mu in bases.tolist():
            norm = math.sqrt(sum(m * m for m in mu)) + eps
            logits.append(sum(a * m / norm for a, m in zip(x, mu)) / temperature)
        weights = [math.exp(s - max(logits)) for s in logits]
        z.append([w / sum(weights) for w in weights])
    z = torch.tensor(z, dtype=torch.float64)
    mass = z.sum(0)
    new = torch.stack([sum(z[t, k] * values[t] for t in range(len(values))) for k in range(len(bases))])
    return new / (mass + eps)[:, None], mass, z


@CHECKED
@pytest.mark.parametrize("temperature", [1.0, 0.05])
def test_equals_stems_formula_by_brute_force(temperature, backend):
    tokens, bases = inputs()
    values = torch.randn(2, 23, 3, dtype=torch.float64)
    new, mass = em_step(tokens, bases, temperature=temperature, keep_dead=False, backend=backend)
    of_values = em_values(tokens, values, bases, temperature=temperature, backend=backend)
    for row in range(2):
        want, want_mass, z = brute_force(tokens[row], tokens[row], bases[row], temperature, 1e-4)
        assert_close(z.sum(1), torch.ones(23, dtype=torch.float64))
        assert_close(new[row], want)
        assert_close(mass[row], want_mass)
        want, _, _ = brute_force(tokens[row], values[row], bases[row], temperature, 1e-4)
        assert_close(of_values[row], want)
    assert_close(mass.sum(-1), torch.full((2,), 23.0, dtype=torch.float64))


@CHECKED
def test_a_dead_base_stays_or_fades_but_is_never_nan(backend):
    tokens, bases = inputs(rows=())
    tokens[:, 0] = tokens[:, 0].abs() + 1
    bases[2] = torch.tensor([-1.0, 0, 0, 0, 0])  # the opposite of every token: its responsibilities underflow to 0
    kept, mass = em_step(tokens, bases, temperature=1e-3, backend=backend)
    assert mass[2] == 0
    assert torch.equal(kept[2], bases[2])
    faded, _ = em_step(tokens, bases, temperature=1e-3, keep_dead=False, backend=backend)
    assert (faded[2] == 0).all()
    assert_close(faded[mass > 1e-4], kept[mass > 1e-4])
    values = em_values(tokens, tokens, bases, temperature=1e-3, eps=0.0, backend=backend)
    assert (values[2] == 0).all()
    assert values.isfinite().all()
    again, _ = em_step(tokens, faded, temperature=1e-3, eps=1e-4, backend=backend)  # a base at 0 has no direction
    assert again.isfinite().all()


@CHECKED
def test_identical_tokens_give_their_value(backend):
    """Up to the eps in the divisor, v * (1 - eps K / T), where the bases share the tokens evenly."""
    token, value = torch.randn(2, 5, dtype=torch.float64)
    k, v = token.repeat(48, 1), value.repeat(48, 1)
    bases = token.repeat(6, 1) * torch.rand(6, 1, dtype=torch.float64).add(0.5)
    out = em_attention(k, k, v, bases, temperature=0.01, eps=1e-6, backend=backend)
    torch.testing.assert_close(out, v, rtol=2e-6, atol=0)


@CHECKED
def test_a_single_base_gives_every_query_the_mean_value(backend):
    k, bases = inputs(bases=1)
    q, v = torch.randn(2, 9, 5, dtype=torch.float64), torch.randn(2, 23, 4, dtype=torch.float64)
    out = em_attention(q, k, v, bases, temperature=0.1, eps=0.0, backend=backend)
    assert_close(out, v.mean(1, keepdim=True).expand(2, 9, 4))


def test_as_many_bases_as_tokens_is_full_attention_as_the_temperature_falls():
    k = torch.nn.functional.normalize(torch.randn(2, 3, 16, 8, dtype=torch.float64), dim=-1)
    q, v = torch.randn(2, 2, 3, 16, 8, dtype=torch.float64)
    out = em_attention(q, k, v, k, temperature=1e-5, eps=0.0)
    assert_close(out, torch.nn.functional.scaled_dot_product_attention(q, k, v))


@CHECKED
def test_the_values_go_by_the_last_e_step_and_the_order_of_tokens_does_not_matter(backend):
    k, start = inputs()
    v = torch.randn(2, 23, 3, dtype=torch.float64)
    bases, values, mass = em_bases(k, v, start, temperature=0.5, iterations=3, backend=backend)
    before = start
    for _ in range(2):
        before, _ = em_step(k, before, temperature=0.5, backend="reference")
    last, last_mass = em_step(k, before, temperature=0.5, backend="reference")
    assert_close(bases, last)
    assert_close(mass, last_mass)
    assert_close(values, em_values(k, v, before, temperature=0.5, backend="reference"))
    order = torch.randperm(23)
    shuffled = em_bases(k[:, order], v[:, order], start, temperature=0.5, iterations=3, backend=backend)
    assert_close(shuffled[1], values)


@CHECKED
def test_attention_is_softmax_over_bases_and_can_skip_the_dead(backend):
    q, k, v = torch.randn(3, 2, 2, 23, 5, dtype=torch.float64)
    start = torch.randn(2, 2, 12, 5, dtype=torch.float64)
    options = {"temperature": 0.01, "iterations": 2, "backend": backend}
    bases, values, mass = em_bases(k, v, start, **options)
    dead = mass <= 1e-4
    assert dead.any()
    logits = q @ bases.mT * 0.3
    assert_close(em_attention(q, k, v, start, scale=0.3, **options), logits.softmax(-1) @ values)
    logits = logits.masked_fill(dead[..., None, :], float("-inf"))
    assert_close(em_attention(q, k, v, start, scale=0.3, skip_dead=True, **options), logits.softmax(-1) @ values)


@pytest.mark.parametrize("budget", [1, 100, 10**9])
def test_chunks_change_nothing(budget, monkeypatch):
    monkeypatch.setattr(chunked, "tile_budget", lambda device: budget)
    tokens, bases = inputs(rows=(2, 3))
    for got, want in zip(*(em_step(tokens, bases, temperature=0.1, backend=b) for b in ("chunked", "reference"))):
        assert_close(got, want)


def test_no_product_meets_numbers_too_small_to_be_held_in_full():
    """At temperature 0.01 they were a seventh of all responsibilities, and a CPU took ten times as long over them."""
    tokens, bases = inputs(tokens=200, bases=32, size=16, dtype=torch.float32)
    tiny = torch.finfo(torch.float32).tiny
    z = (tokens @ directions(bases, 0.01, 1e-4, torch.float32).mT).softmax(-1)
    assert ((z > 0) & (z < tiny)).any()
    with Denormals() as seen:
        em_step(tokens, bases, temperature=0.01, backend="chunked")
    assert seen.products > 0
    assert seen.denormal == 0


class Denormals(TorchDispatchMode):
    """Counts products, and the denormal numbers that go into them."""

    products, denormal = 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket in (torch.ops.aten.bmm, torch.ops.aten.baddbmm):
            self.products += 1
            tiny = torch.finfo(torch.float32).tiny
            self.denormal += sum(int(((x != 0) & (x.abs() < tiny)).sum()) for x in args)
        return func(*args, **(kwargs or {}))


def test_chunked_never_holds_all_responsibilities(monkeypatch):
    monkeypatch.setattr(chunked, "tile_budget", lambda device: 2**11)
    tokens, bases = inputs(tokens=1000, bases=32, size=4, dtype=torch.float32)
    with Largest() as seen:
        em_bases(tokens, tokens, bases, temperature=0.01, backend="chunked")
    side_by_side = 2 * tokens.numel()  # keys and values, for the last round
    assert seen.elements <= max(2**11, side_by_side) < 1000 * 32


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_tokens_are_summed_in_float32(dtype):
    tokens, bases = inputs(dtype=dtype)
    new, mass = em_step(tokens, bases, temperature=0.1)
    assert new.dtype == mass.dtype == torch.float32
    exact, _ = em_step(tokens.double(), bases.double(), temperature=0.1, backend="reference")
    assert_close(new, exact.float())
    assert em_attention(tokens, tokens, tokens, bases, temperature=0.1).dtype == dtype


tokens, bases = inputs()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokens": tokens[0]}, "equal leading dimensions"),
        ({"tokens": tokens[:, :0]}, "none empty"),
        ({"bases": bases[..., :2]}, "bases"),
        ({"bases": bases[:, :0]}, "none empty"),
        ({"tokens": tokens.int()}, "floating-point"),
        ({"temperature": 0.0}, "positive"),
        ({"eps": -1.0}, "not be negative"),
        ({"bases": bases.to("meta")}, "want one device"),
        ({"backend": "fast"}, "'fast'"),
    ],
    ids=lambda x: next(iter(x)) if isinstance(x, dict) else "",
)
def test_what_does_not_fit_says_why(change, message):
    with pytest.raises(ValueError, match=message):
        em_step(**({"tokens": tokens, "bases": bases, "temperature": 0.1} | change))


def test_attention_checks_its_own_arguments():
    with pytest.raises(ValueError, match="at least one EM iteration"):
        em_attention(tokens, tokens, tokens, bases, temperature=0.1, iterations=0)
    with pytest.raises(ValueError, match=r"q \[\.\.\. M D\] like k"):
        em_attention(tokens[..., :2], tokens, tokens, bases, temperature=0.1)
    with pytest.raises(ValueError, match="values"):
        em_values(tokens, tokens[:, :3], bases, temperature=0.1)
