from dataclasses import replace

import pytest
import torch

from weft.engine.edit import edit
from weft.engine.inversion import invert
from weft.engine.monitor import Monitor, Recording
from weft.engine.plan import PLAIN
from weft.engine.seeds import generator_for
from weft.engine.words import POSITIVE, SOURCE
from weft.kernels.em import chunked
from weft.methods.stem import EPS, STEMAttention
from weft.tests.kernels.sizes import Operations
from weft.tests.methods.calls import SCALE, SITE, attend, attended, call_of, tensors
from weft.tests.numerics import assert_close
from weft.tests.tiny import make_latents

F, H, N, D, K = 3, 2, 8, 5, 6  # frames, heads, tokens of a frame, head size, bases
DENSE_LIMIT = 3e-4  # the eps of the two steps keep K = n bases this far from attention to the n tokens
FEW = {"bases": 4, "iterations": 2}
STEPS = 3


def clip(x):
    """[R, F, H, n, D] -> [R, 1, H, F n, D]"""
    return x.transpose(1, 2).flatten(2, 3)[:, None]


def dense(q, k, v):
    """Spatio-temporal attention over all tokens of all frames."""
    out = attended(clip(q), clip(k), clip(v))[:, 0]
    return out.unflatten(2, q.shape[1:4:2]).transpose(1, 2)


def on_bases(call, **numbers):
    return STEMAttention(**{"bases": K, "tokens_per_base": 0, **numbers}).attention(call, attend)


def run(q, k, v, **numbers):
    return on_bases(call_of(q, k, v), **numbers)


# ---- the definition -------------------------------------------------------------------------------------------------


def released(x, v, start, temperature, iterations):
    """Bases, values and mass of tokens x [n, D] and values v [n, W], one head, written out."""
    mu = start
    for _ in range(iterations):
        z = (x @ (mu / (mu.norm(dim=1, keepdim=True) + 1e-4)).T / temperature).softmax(1)
        torch.testing.assert_close(z.sum(1), torch.ones(len(x), dtype=z.dtype))
        weights = z / (z.sum(0, keepdim=True) + 1e-4)
        mu = weights.T @ x
    return mu, weights.T @ v, z.sum(0)


def normal_start(x, bases=K):
    noise = torch.randn(H, bases, D, generator=generator_for(0, 0, "layer")).double()
    return x.mean(-2, keepdim=True) + x.std(-2, keepdim=True) * noise


@pytest.mark.parametrize("temperature", [0.01, 0.5])
def test_every_frame_attends_to_the_bases_of_all(temperature):
    q, k, v = tensors(2, F, H, N, D)
    got = on_bases(call_of(q, k, v, (SOURCE, POSITIVE)), temperature=temperature)
    for row in range(2):
        tokens, values = clip(k)[row, 0], clip(v)[row, 0]
        start = normal_start(tokens)
        for head in range(H):
            mu, of_mu, _ = released(tokens[head], values[head], start[head], temperature, 5)
            for frame in range(F):
                want = (q[row, frame, head] @ mu.T * SCALE).softmax(-1) @ of_mu
                torch.testing.assert_close(got[row, frame, head], want, rtol=1e-7, atol=1e-9)


def test_in_hidden_space_the_bases_are_projected():
    q, k, v = tensors(1, F, H, N, D)
    call = call_of(q, k, v)
    got = on_bases(call, space="hidden", init="random_tokens", temperature=0.5)
    tokens = call.tokens[0].flatten(0, 1)
    at = torch.randperm(F * N, generator=generator_for(0, 0, "layer"))[:K]
    mu, _, _ = released(tokens, tokens, tokens[at], 0.5, 5)
    keys, values = (x[0, 0] for x in call.project(mu[None, None]))
    assert_close(got[0], attended(q[0], keys, values))


@pytest.mark.parametrize("space", ["key_per_head", "hidden"])
def test_under_the_map_of_another_row_bases_are_of_its_keys_and_hold_ones_own_values(space):
    call = call_of(*tensors(2, F, H, N, D), (SOURCE, POSITIVE))
    numbers = {"space": space, "init": "random_tokens", "temperature": 0.5}
    got = on_bases(call.only(POSITIVE).mapped(call.source), **numbers)
    at = torch.randperm(F * N, generator=generator_for(0, 0, "layer"))[:K]
    if space == "hidden":
        source, own = (call.tokens[row].flatten(0, 1) for row in (0, 1))
        mu, of_mu, _ = released(source, own, source[at], 0.5, 5)
        keys, values = call.project(mu[None, None])[0][0, 0], call.project(of_mu[None, None])[1][0, 0]
        assert_close(got[0], attended(call.q[0], keys, values))
        return
    for head in range(H):
        keys, values = clip(call.k)[0, 0, head], clip(call.v)[1, 0, head]
        mu, of_mu, _ = released(keys, values, keys[at], 0.5, 5)
        assert_close(got[0, :, head], attended(call.q[0, :, head], mu, of_mu))


def test_skipping_dead_bases_leaves_them_out_of_the_softmax():
    q, k, v = tensors(1, F, H, N, D)
    got = run(q, k, v, bases=F * N, skip_dead=True)
    start = normal_start(clip(k)[0, 0], F * N)
    for head in range(H):
        mu, values, mass = released(clip(k)[0, 0, head], clip(v)[0, 0, head], start[head], 0.01, 5)
        alive = mass > EPS
        assert 0 < alive.sum() < F * N
        torch.testing.assert_close(got[0, :, head], attended(q[0, :, head], mu[alive], values[alive]))
    assert not torch.allclose(got, run(q, k, v, bases=F * N))


# ---- what must hold, up to the eps ----------------------------------------------------------------------------------


def test_as_many_bases_as_tokens_is_dense_attention_over_all_frames():
    q, k, v = tensors(1, F, H, N, D)
    got = run(q, k, v, bases=F * N, init="random_tokens", temperature=1e-5)
    assert (got - dense(q, k, v)).norm() <= DENSE_LIMIT * dense(q, k, v).norm()
    far = run(q, k, v, bases=F * N, init="random_tokens", temperature=1.0)
    assert (far - dense(q, k, v)).norm() > 100 * DENSE_LIMIT * dense(q, k, v).norm()


def test_identical_tokens_give_their_value():
    q, _, _ = tensors(1, F, H, N, D)
    k, v = (torch.randn(1, 1, H, 1, D, dtype=torch.float64).expand(1, F, H, N, D) for _ in range(2))
    assert_close(run(q, k, v), v * (F * N / K) / (F * N / K + EPS))


def test_one_base_gives_every_query_the_mean():
    q, k, v = tensors(1, F, H, N, D)
    mean = clip(v).mean(3, keepdim=True) * F * N / (F * N + EPS)
    assert_close(run(q, k, v, bases=1), mean.expand_as(q))


def test_permuted_frames_give_permuted_outputs():
    q, k, v = tensors(1, 5, H, N, D)
    order = torch.tensor([3, 0, 4, 1, 2])
    got = run(q[:, order], k[:, order], v[:, order], temperature=0.5)
    assert_close(got, run(q, k, v, temperature=0.5)[:, order])


def test_few_tokens_at_a_time_are_all_at_once(monkeypatch):
    q, k, v = tensors(1, F, H, N, D)
    want = run(q, k, v)
    monkeypatch.setattr(chunked, "tile_budget", lambda device: 1)
    torch.testing.assert_close(run(q, k, v), want, rtol=1e-8, atol=1e-10)


def test_tokens_are_laid_out_once_and_not_in_every_round():
    """A layer's heads lie side by side in a token, and products want each head's tokens together."""
    q, k, v = (torch.randn(2, F, N, H, D).transpose(2, 3) for _ in range(3))
    copies = []
    for rounds in (2, 6):
        with Operations(k.numel()) as seen:
            run(q, k, v, iterations=rounds)
        copies.append(sum(seen.count[name] for name in ("clone", "copy_", "_to_copy", "cat", "constant_pad_nd")))
    assert copies[0] == copies[1]


def test_rows_of_the_batch_do_not_see_each_other():
    q, k, v = tensors(2, F, H, N, D)
    both = on_bases(call_of(q, k, v, (SOURCE, POSITIVE)))
    for row in range(2):
        torch.testing.assert_close(both[row], run(q[row][None], k[row][None], v[row][None])[0])


# ---- starts, caps, dead bases ---------------------------------------------------------------------------------------


def test_starts_depend_on_seed_step_and_layer_alone():
    call = call_of(*tensors(1, F, H, N, D))
    want = on_bases(call)
    torch.randn(7)
    assert torch.equal(on_bases(call), want)
    others = [
        on_bases(call, seed=1),
        on_bases(replace(call, run=replace(call.run, step=1))),
        on_bases(replace(call, site=replace(SITE, layer="other"))),
    ]
    assert all(not torch.allclose(other, want) for other in others)


def test_layers_with_few_tokens_get_fewer_bases_and_the_dead_are_reported(tiny_image):
    """The tiny latents are 6x10, 3x5 and 2x3 cells: 3 frames of the coarsest have 18 tokens."""
    log = Recording()
    invert(
        tiny_image, make_latents(), tiny_image.text.embed("a"), steps=2, plan=PLAIN.then(STEMAttention()), monitor=log
    )
    assert [r["fewest_bases"] for r in log.records] == [9] * 3
    assert all(0 < r["dead_bases"] < 1 for r in log.records)
    assert [r["step"] for r in log.records] == [1, 1, 0]
    log = Recording()
    plan = PLAIN.then(STEMAttention(tokens_per_base=0))
    invert(tiny_image, make_latents(), tiny_image.text.embed("a"), steps=2, plan=plan, monitor=log)
    assert [r["fewest_bases"] for r in log.records] == [256] * 3


# ---- in an inversion and in an edit ---------------------------------------------------------------------------------


def stem_inversion(backbone, latents, text="a", numbers=FEW, **options):
    plan = PLAIN.then(STEMAttention(**numbers))
    return invert(backbone, latents, backbone.text.embed(text), plan=plan, steps=STEPS, **options)


def test_an_inversion_under_it_is_another_and_the_same_twice(tiny_image):
    latents = make_latents()
    got, again = (stem_inversion(tiny_image, latents, convention="paper") for _ in range(2))
    assert torch.equal(got.latents, again.latents)
    plain = invert(tiny_image, latents, tiny_image.text.embed("a"), steps=STEPS, convention="paper")
    assert not torch.allclose(got.latents, plain.latents)


def test_groups_of_frames_are_inverted_as_clips_of_their_own(tiny_image64):
    backbone, latents = tiny_image64, make_latents(5)
    numbers = {"em_frames": 2, "temperature": 1.0, **FEW}

    def latents_of(some, **options):
        return stem_inversion(backbone, some, numbers=numbers, **options).latents

    whole = latents_of(latents)
    for some in (slice(0, 2), slice(2, 4), slice(4, 5)):
        assert_close(whole[:, some], latents_of(latents[some]))
    assert_close(latents_of(latents, chunk_frames=3), whole)  # chunks do not cut groups


def test_shared_bases_are_the_sources():
    """Keys and values of another row, summed up by the source's responsibilities."""
    q, k, v = tensors(2, F, H, N, D)
    got = on_bases(call_of(q, k, v, (SOURCE, POSITIVE)), shared=True, temperature=0.5)
    assert_close(got[:1], run(q[:1], k[:1], v[:1], temperature=0.5))
    source, start = clip(k)[0, 0], normal_start(clip(k)[0, 0])
    for head in range(H):
        keys, values = (
            released(source[head], clip(x)[1, 0, head], start[head], 0.5, 5)[1] for x in (k, v)
        )  # fmt: skip
        assert_close(got[1, :, head], attended(q[1, :, head], keys, values))


@pytest.mark.parametrize("space", ["key_per_head", "hidden"])
def test_rows_alike_stay_alike_under_shared_bases(tiny_image64, space):
    """The edit of a clip under its own prompt replays the trajectory, with and without shared bases."""
    backbone, prompt = tiny_image64, tiny_image64.text.embed("a red square")
    trajectory = stem_inversion(backbone, make_latents(), prompt.text, FEW | {"space": space})
    trajectory = replace(trajectory, latents=trajectory.latents[:1].expand_as(trajectory.latents).clone())
    plans = [PLAIN.then(STEMAttention(**FEW, space=space, shared=shared, temperature=1.0)) for shared in (False, True)]
    one = replace(trajectory, latents=trajectory.latents[-2:], schedule=backbone.denoiser.schedule(1))
    want, got = (edit(backbone, one, prompt, plan=plan, guidance=1) for plan in plans)
    assert_close(got, want)


def test_other_attention_is_left_alone():
    call = call_of(*tensors(1, F, H, N, D), site=replace(SITE, kind="cross"))
    assert torch.equal(on_bases(call), attend(call))


def test_cancel_is_asked_in_every_round():
    class Stop(Exception):
        pass

    class Cancelled(Monitor):
        def check(self):
            raise Stop

    call = call_of(*tensors(1, F, H, N, D))
    with pytest.raises(Stop):
        on_bases(replace(call, run=replace(call.run, monitor=Cancelled())))


def test_chunks_of_frames_are_refused_where_em_sees_all(tiny_image):
    with pytest.raises(ValueError, match="STEM Attention looks at all 3 frames together"):
        stem_inversion(tiny_image, make_latents(), chunk_frames=2)


@pytest.mark.parametrize(
    ("numbers", "match"),
    [
        ({"bases": 0}, "bases must be 1 or more, got 0"),
        ({"iterations": 0}, "iterations must be 1 or more, got 0"),
        ({"temperature": 0.0}, "the temperature must be positive, got 0.0"),
        ({"temperature": float("nan")}, "the temperature must be positive, got nan"),
        ({"em_frames": -1}, "em_frames must be 0 or more, got -1"),
        ({"tokens_per_base": -1}, "tokens_per_base must be 0 or more, got -1"),
        ({"space": "values"}, "no space 'values': want one of key_per_head, hidden"),
        ({"init": "zeros"}, "no init 'zeros': want one of normal, random_tokens"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(numbers, match):
    with pytest.raises(ValueError, match=match):
        PLAIN.then(STEMAttention(**numbers))
