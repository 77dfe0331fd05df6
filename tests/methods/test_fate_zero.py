from dataclasses import replace

import pytest
import torch
import torch.nn.functional as functional

from weft.engine.edit import edit
from weft.engine.inversion import invert
from weft.engine.monitor import Monitor
from weft.engine.plan import PLAIN
from weft.engine.probe import read_calls
from weft.engine.words import NEGATIVE, POSITIVE, SOURCE
from weft.methods.fate_zero import FateZero, Fusion, Watch
from weft.methods.spatio_temporal import SpatioTemporalAttention
from weft.methods.stem import STEMAttention
from weft.methods.words import TokenMap
from weft.tests.methods.calls import SCALE, SITE, attend, attended, call_of, evaluation, shared, tensors
from weft.tests.numerics import assert_close
from weft.tests.tiny import make_latents

F, H, N, D, L, STEPS = 3, 2, 6, 5, 4, 5
ROWS = (SOURCE, NEGATIVE, POSITIVE)
CROSS = replace(SITE, kind="cross")
PAST = {"self_share": 0.0, "cross_share": 0.0}
ALWAYS = {"self_share": 1.0, "cross_share": 1.0}


def maps(q, k):
    return (q @ k.mT * SCALE).softmax(-1)


def fused(control, fusion, q, k, v, site, step=0, steps=10, grid=(F, 2, 3)):
    call = call_of(q, k, v, ROWS, site=site, grid=grid, step=step, steps=steps)
    return control.attention(shared(call, control, fusion), attend)


def a_fusion(words=None, weights=None):
    taken, kept = torch.rand(L, L), torch.rand(L)
    weights = torch.rand(L) if weights is None else weights
    return Fusion({POSITIVE: TokenMap(taken, kept)}, {POSITIVE: weights}, words)


# ---- the definition, with maps in full ------------------------------------------------------------------------------


def test_cross_attention_takes_the_sources_maps_by_words_and_weights_them():
    q = torch.randn(3, F, H, N, D, dtype=torch.float64)
    k, v = tensors(3, F, H, L, D, count=2)
    fusion = a_fusion()
    got = fused(FateZero(), fusion, q, k, v, CROSS)
    tokens = fusion.tokens[POSITIVE]
    new = maps(q[0], k[0]) @ tokens.taken.double() + maps(q[2], k[2]) * tokens.kept
    assert_close(got[2], (new * fusion.weights[POSITIVE]) @ v[2])
    assert_close(got[:2], attended(q[:2], k[:2], v[:2]))


def test_the_positive_row_of_every_region_is_fused_by_its_own_words():
    other = replace(POSITIVE, region=1)
    q = torch.randn(3, F, H, N, D, dtype=torch.float64)
    k, v = tensors(3, F, H, L, D, count=2)
    control, one, two = FateZero(), a_fusion(), a_fusion()
    fusion = Fusion(
        one.tokens | {other: two.tokens[POSITIVE]}, one.weights | {other: two.weights[POSITIVE]}, words=None
    )
    call = call_of(q, k, v, (SOURCE, POSITIVE, other), site=CROSS)
    got = control.attention(shared(call, control, fusion), attend)
    for row, at in ((POSITIVE, 1), (other, 2)):
        new = maps(q[0], k[0]) @ fusion.tokens[row].taken.double() + maps(q[at], k[at]) * fusion.tokens[row].kept
        assert_close(got[at], (new * fusion.weights[row]) @ v[at])


def test_self_attention_is_the_sources_but_where_the_words_are():
    q, k, v = tensors(3, F, H, 20, D)
    words = torch.rand(F, 4, 5)
    control = FateZero(key_frames="own", threshold=0.9)
    got = fused(control, a_fusion(dict(enumerate(words))), q, k, v, SITE, grid=(F, 4, 5))
    spread = functional.max_pool2d(words[:, None], 3, 1, 1)[:, 0]
    mask = (spread / spread.amax((1, 2), keepdim=True) > 0.9).flatten(1)
    assert mask.any() and not mask.all()  # noqa: PT018
    new = torch.where(mask[:, None, :, None], maps(q[2], k[2]), maps(q[0], k[0]))
    assert_close(got[2], new @ v[2])
    assert_close(got[:2], attended(q[:2], k[:2], v[:2]))


def test_without_words_all_self_attention_is_the_sources():
    q, k, v = tensors(3, F, H, N, D)
    got = fused(FateZero(key_frames="own"), a_fusion(), q, k, v, SITE)
    assert_close(got[2], maps(q[0], k[0]) @ v[2])


def test_masks_are_spread_resized_to_the_nearest_and_read_against_each_frames_largest():
    control, words = FateZero(threshold=0.3), torch.zeros(2, 4, 4)
    words[0, 0, 0], words[1, 3, 3], words[1, 0, 0] = 0.01, 50.0, 14.0
    got = control.mask(words, (8, 8))
    want = torch.zeros(2, 8, 8, dtype=torch.bool)
    want[0, :4, :4] = want[1, 4:, 4:] = True
    assert torch.equal(got, want)
    assert torch.equal(control.mask(words, (2, 2)), want[:, ::4, ::4])


@pytest.mark.parametrize(
    ("key_frames", "seen"),
    [
        ("own", [[0], [1], [2]]),
        ("middle", [[1]] * 3),
        ("middle", [[1]] * 4),  # of an even number, the earlier
        ("previous_and_first", [[0, 0], [0, 0], [1, 0]]),
    ],
)
def test_frames_attend_to_their_key_frames_in_every_row(key_frames, seen):
    q, k, v = tensors(3, len(seen), H, N, D)
    got = FateZero(key_frames=key_frames).attention(call_of(q, k, v, ROWS), attend)
    for frame, others in enumerate(seen):
        keys, values = (torch.cat([x[:, f] for f in others], 2) for x in (k, v))
        assert_close(got[:, frame], attended(q[:, frame], keys, values))


@pytest.mark.parametrize("key_frames", ["previous_and_first", "middle", "own"])
def test_key_frames_and_all_frames_are_all_frames(key_frames):
    """What controls ask to be seen adds up, and no frame counts twice."""
    x = tensors(3, F, H, N, D)
    every = SpatioTemporalAttention()
    got = FateZero(key_frames=key_frames).attention(call_of(*x, ROWS), lambda call: every.attention(call, attend))
    assert_close(got, every.attention(call_of(*x, ROWS), attend))


@pytest.mark.parametrize(("site", "acting"), [(SITE, int(0.8 * 9)), (CROSS, int(0.8 * (9 + 1)))])
def test_fusion_ends_after_its_share_of_the_run(site, acting):
    """Of 9 steps at 0.8, 7 of self-attention and 8 of cross-attention."""
    q, k, v = tensors(3, F, H, L, D)
    control, plain = FateZero(key_frames="own"), attend(call_of(q, k, v, ROWS))
    of = {"steps": 9, "grid": (F, 2, 2)}
    acts = [not torch.equal(fused(control, a_fusion(), q, k, v, site, step=s, **of), plain) for s in range(9)]
    assert acts == [s < acting for s in range(9)]


def test_large_layers_are_left_alone():
    x = tensors(3, F, H, N, D)
    plain = attend(call_of(*x, ROWS))
    assert torch.equal(fused(FateZero(key_frames="own", most_tokens=N - 1), a_fusion(), *x, SITE), plain)
    for most in (N, 0):
        assert not torch.allclose(fused(FateZero(key_frames="own", most_tokens=most), a_fusion(), *x, SITE), plain)


# ---- the mask's words -----------------------------------------------------------------------------------------------


def test_the_words_maps_are_the_means_over_heads_summed_over_layers(tiny_image64):
    backbone = tiny_image64
    prompt, z = backbone.text.embed("a red square"), make_latents(F)
    prompts = prompt, backbone.text.embed("a blue circle")
    e = replace(evaluation((SOURCE, POSITIVE), F, prompts=prompts), latents=torch.stack([z, z + 1]), label=501)
    with torch.no_grad():
        control = FateZero(words=("square", "red"), key_frames="own")
        got = control._words(e, lambda e: backbone.denoiser.predict(e, PLAIN.then(control)))
        level = 0  # 6x10, of the three the nearest to 16x16
        sites = [s for s in backbone.denoiser.sites if (s.kind, s.level) == ("cross", level) and s.half != "middle"]
        layers = [s.layer for s in sites]
        calls = read_calls(backbone.denoiser.predict, e.only(SOURCE), PLAIN, SOURCE, layers)
    want = torch.zeros(F, 6, 10)
    for call in calls.values():
        want += (call.q[0] @ call.k[0].mT * call.scale).softmax(-1)[..., [2, 3]].sum(-1).mean(1).view(F, 6, 10)
    assert len(sites) > 1
    torch.testing.assert_close(torch.stack([got[f] for f in range(F)]), want, rtol=1e-5, atol=1e-6)


def test_the_level_nearest_to_16_by_16_is_read():
    watch = Watch([0])
    watch.maps = {k: {0: {"layer": torch.zeros(2 ** (6 - k), 2 ** (6 - k))}} for k in range(4)}
    assert watch.chosen()[0].shape == (16, 16)
    watch.maps.pop(2)
    assert watch.chosen()[0].shape in ((32, 32), (8, 8))


def test_a_pass_made_again_counts_once():
    """As where memory ended half way through it, and it is made again with fewer frames at a time."""
    watch, sized = Watch([0, 1]), {"site": CROSS, "grid": (F, 2, 3)}
    calls = [call_of(*tensors(1, F, H, N, D), **sized) for _ in range(2)]
    calls[1] = replace(calls[1], site=replace(CROSS, layer="other"))
    for call in (calls[0], calls[0], *calls):
        watch.add(call)
    want = sum(maps(call.q[0], call.k[0])[..., [0, 1]].sum(-1).mean(1) for call in calls)
    got = watch.chosen()
    torch.testing.assert_close(torch.stack([got[f] for f in range(F)]), want.float().view(F, 2, 3))


@pytest.mark.parametrize(("numbers", "passes"), [({}, 2), ({"threshold": 2.0}, 1), ({"words": ()}, 1)])
def test_masks_cost_one_pass_of_the_source_and_only_where_they_are_used(tiny_image, numbers, passes):
    seen = []
    control = FateZero(**{"words": ("red",), "key_frames": "own", **numbers})
    prompts = tuple(tiny_image.text.embed(t) for t in ("a red square", "a blue circle"))
    e = replace(evaluation((SOURCE, POSITIVE), F, prompts=prompts), latents=torch.stack([make_latents(F)] * 2))

    def evaluate(e):
        seen.append(e.rows)
        return tiny_image.denoiser.predict(e, PLAIN.then(control))

    with torch.no_grad():
        control.evaluate(e, evaluate)
        assert seen == [(SOURCE,)] * (passes - 1) + [(SOURCE, POSITIVE)]
        seen.clear()
        control.evaluate(replace(e, run=replace(e.run, step=8)), evaluate)  # past self_share
    assert len(seen) == 1


# ---- whole edits ----------------------------------------------------------------------------------------------------


@pytest.fixture
def trajectory(tiny_image64):
    return invert(tiny_image64, make_latents(F), tiny_image64.text.embed("a red square"), steps=STEPS)


@pytest.fixture
def run(tiny_image64, trajectory):
    def run(plan=PLAIN, prompt="a blue circle", guidance=2.0, **options):
        return edit(tiny_image64, trajectory, tiny_image64.text.embed(prompt), plan=plan, guidance=guidance, **options)

    return run


@pytest.mark.parametrize("mapping", ["refine", "replace"])
@pytest.mark.parametrize("numbers", [{"threshold": 2.0}, {"threshold": 0.3}])
def test_an_edit_under_the_sources_own_prompt_replays_it(tiny_image64, trajectory, mapping, numbers):
    """At the first step, where edit and source are the same latents, so that their maps are."""
    one = replace(trajectory, latents=trajectory.latents[[0, -1]], schedule=tiny_image64.denoiser.schedule(1))
    plan = PLAIN.then(FateZero(words=("square",), mapping=mapping, key_frames="own", **ALWAYS, **numbers))
    got, want = (edit(tiny_image64, one, one.prompt, plan=p, guidance=1) for p in (plan, PLAIN))
    assert_close(got, want)


def test_threshold_2_and_the_same_prompt_reconstruct_the_source(tiny_image64):
    """As well as sampling without any plan does, where the inversion is good."""
    backbone, latents = tiny_image64, make_latents(F)
    fine = invert(backbone, latents, backbone.text.embed("a red square"), steps=10, evaluations=10)
    plan = PLAIN.then(FateZero(words=("square",), threshold=2.0, key_frames="own"))
    got, want = (edit(backbone, fine, fine.prompt, plan=p, guidance=1) for p in (plan, PLAIN))
    error, floor = ((x - latents).norm() for x in (got, want))
    assert error < 0.01 * latents.norm()
    assert error < 1.1 * floor


def test_nothing_to_fuse_is_the_plain_edit(run):
    assert_close(run(PLAIN.then(FateZero(key_frames="own", **PAST))), run())


@pytest.mark.parametrize(
    "numbers",
    [{}, {"words": ("square",)}, {"mapping": "replace"}, {"reweight": (("blue", 5.0),)}, {"key_frames": "middle"}],
)
def test_every_number_changes_the_edit(run, numbers):
    base = {"key_frames": "own"}
    want = run() if not numbers else run(PLAIN.then(FateZero(**base)))
    assert not torch.allclose(run(PLAIN.then(FateZero(**base | numbers))), want)


def test_chunks_of_frames_change_nothing_where_frames_attend_to_themselves(run):
    plan = PLAIN.then(FateZero(words=("square",), key_frames="own"))
    assert_close(run(plan, chunk_frames=2), run(plan))
    with pytest.raises(ValueError, match="FateZero looks at all 3 frames together"):
        run(PLAIN.then(FateZero()), chunk_frames=2)


def test_maps_to_shared_bases_are_fused_too(tiny_image64, trajectory, run):
    """STEM next to the softmax, FateZero around it: A is [queries, K], its columns mean the same in both rows."""
    numbers = {"bases": 4, "iterations": 2, "temperature": 1.0, "shared": True}
    stem = PLAIN.then(STEMAttention(**numbers))
    both = stem.then(FateZero(key_frames="own"))
    assert not torch.allclose(run(both), run(stem))
    one = replace(trajectory, latents=trajectory.latents[[0, -1]], schedule=tiny_image64.denoiser.schedule(1))
    always = stem.then(FateZero(key_frames="own", **ALWAYS))
    got, want = (edit(tiny_image64, one, one.prompt, plan=p, guidance=1) for p in (always, stem))
    assert_close(got, want)
    duplicated = stem.then(FateZero(key_frames="previous_and_first"))  # the same bases twice are the same bases
    assert_close(run(duplicated), run(both))
    assert torch.equal(run(PLAIN.then(FateZero(key_frames="own")).then(STEMAttention(**numbers))), run(both))


def test_an_inversion_under_it_has_its_key_frames_and_no_fusion(tiny_image, trajectory):
    def inverted(plan):
        latents = tiny_image.codec.unscale(trajectory.latents[0])
        return invert(tiny_image, latents, trajectory.prompt, steps=2, plan=plan).latents

    assert torch.equal(inverted(PLAIN.then(FateZero(key_frames="own"))), inverted(PLAIN))
    assert not torch.allclose(inverted(PLAIN.then(FateZero())), inverted(PLAIN))


# ---- refusals -------------------------------------------------------------------------------------------------------


class Never(Monitor):
    def check(self):
        raise AssertionError("the network was about to run")


def test_words_that_are_not_in_the_prompts_are_refused_before_anything_runs(run):
    with pytest.raises(ValueError, match="the prompt 'a red square' does not have the word 'circle'"):
        run(PLAIN.then(FateZero(words=("circle",))), monitor=Never())
    with pytest.raises(ValueError, match="the prompt 'a blue circle' does not have the word 'square'"):
        run(PLAIN.then(FateZero(reweight=(("square", 2.0),))), monitor=Never())
    with pytest.raises(ValueError, match="has 3 words and 'a circle' 2"):
        run(PLAIN.then(FateZero(mapping="replace")), "a circle", monitor=Never())


def test_prompts_without_tokens_are_refused(tiny_image, trajectory):
    bare = replace(trajectory, prompt=replace(trajectory.prompt, tokens=()))
    with pytest.raises(ValueError, match="the prompt 'a red square' has no words"):
        edit(tiny_image, bare, trajectory.prompt, plan=PLAIN.then(FateZero(words=("red",))))


def test_models_without_attention_are_refused(trajectory):
    from weft.tests.engine.analytic import Gaussian

    backbone = Gaussian()
    prompt = replace(backbone.text.embed("a"), tokens=("a ", ""))
    clip = invert(backbone, backbone.sample(), prompt, steps=2)
    with pytest.raises(ValueError, match="FateZero wants self- and cross-attention, and 'gaussian' does not have both"):
        edit(backbone, clip, clip.prompt, plan=PLAIN.then(FateZero()))


@pytest.mark.parametrize(
    ("numbers", "match"),
    [
        ({"self_share": 1.5}, r"self_share is a share of the run, 0\.\.1, got 1.5"),
        ({"cross_share": -0.1}, r"cross_share is a share of the run, 0\.\.1, got -0.1"),
        ({"threshold": -1.0}, "threshold must be 0 or more, got -1"),
        ({"most_tokens": -1}, "most_tokens must be 0 or more, got -1"),
        ({"mapping": "swap"}, "no mapping 'swap': want one of refine, replace"),
        ({"key_frames": "last"}, "no key_frames 'last': want one of previous_and_first, middle, own"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(numbers, match):
    with pytest.raises(ValueError, match=match):
        PLAIN.then(FateZero(**numbers))


def test_no_row_attends_for_nothing():
    """What a fused row would have attended to by itself is only asked for where the mask may keep it."""
    rows = []

    def told(call):
        rows.extend(row for row in call.rows if row.role == "positive")
        return attend(call)

    q = torch.randn(3, F, H, N, D, dtype=torch.float64)
    k, v = tensors(3, F, H, L, D, count=2)
    control = FateZero(key_frames="own")
    control.attention(shared(call_of(q, k, v, ROWS, site=CROSS), control, a_fusion()), told)
    assert len(rows) == 2  # with the source's map and with its own
    rows.clear()
    whole = dict(enumerate(torch.rand(F, 2, 3)))
    for words, count in ((None, 1), (whole, 2)):
        rows.clear()
        call = call_of(*tensors(3, F, H, N, D), ROWS, grid=(F, 2, 3))
        control.attention(shared(call, control, a_fusion(words)), told)
        assert len(rows) == count


def test_after_the_first_step_one_level_is_read(tiny_image64):
    control, source = FateZero(words=("red",)), tiny_image64.text.embed("a red square")
    e = replace(evaluation((SOURCE,), 2, prompts=(source,)), latents=make_latents(2)[None])
    levels = []

    def network(asked):
        watch = asked.run.shared[control]
        out = tiny_image64.denoiser.predict(asked, PLAIN.then(control))
        levels.append(set(watch.maps))
        return out

    with torch.no_grad():
        first, second = control._words(e, network), control._words(e, network)
    assert len(levels[0]) > len(levels[1]) == 1
    for frame, words in first.items():
        assert torch.equal(second[frame], words)


def test_masks_are_made_once_a_step_for_layers_of_one_size():
    control, fusion = FateZero(key_frames="own"), a_fusion(dict(enumerate(torch.rand(F, 2, 3))))
    for _ in range(3):
        fused(control, fusion, *tensors(3, F, H, N, D), SITE)
    assert len(fusion.masks) == 1
