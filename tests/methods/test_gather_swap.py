"""Gather and swap by brute force: one network call a frame, with attention written out."""

from dataclasses import dataclass, field, replace
from itertools import pairwise

import pytest
import torch

from weft.backbones.diffusers.text import prompt_of
from weft.engine.call import Evaluation
from weft.engine.edit import edit
from weft.engine.evaluate import Chunks, evaluate_with
from weft.engine.inversion import add_noise, invert
from weft.engine.monitor import Monitor
from weft.engine.plan import PLAIN, Control, EditPlan
from weft.engine.words import NEGATIVE, POSITIVE, SOURCE, UNCONDITIONAL, Prompt
from weft.methods.gather_swap import GatherSwap, spread
from weft.tests.numerics import assert_close
from weft.tests.tiny import make_latents

FRAMES, STEPS, GROUP = 6, 3, (0, 2, 5)
SIZE = (5, 9)
SCALES = {"guidance": 3.0, "image_guidance": 1.5}
EDIT = (UNCONDITIONAL, NEGATIVE, POSITIVE)


def clip(backbone, latents=None, **options):
    latents = make_latents(FRAMES, SIZE) if latents is None else latents
    return add_noise(backbone, latents, backbone.text.embed(""), steps=STEPS, **options)


def run(backbone, trajectory, plan=PLAIN, text="turn it into a blue cross", **options):
    positive = text if isinstance(text, Prompt) else backbone.text.embed(text)
    return edit(backbone, trajectory, positive, plan=plan, **{**SCALES, **options})


def evaluation(backbone, rows=EDIT, frames=FRAMES):
    z = make_latents(frames, SIZE, 1)
    prompts = tuple(backbone.text.embed(t) for t in ("", "a red square", "make it blue", "green")[: len(rows)])
    return Evaluation(torch.stack([z] * len(rows)), 501, prompts, rows, image=make_latents(frames, SIZE, 2))


def per_frame(backbone, *texts):
    """One prompt with a text for each frame."""
    prompts = [backbone.text.embed(t) for t in texts]
    return prompt_of(torch.cat([p.cond["embedding"] for p in prompts]), prompts[0].text, prompts[0].encoder)


def softmax_attention(q, k, v, scale):
    return (q @ k.transpose(-1, -2) * scale).softmax(-1) @ v


@dataclass(frozen=True, eq=False)
class OneByOne(Control):
    """Equations 7 to 9 for one frame: `given` are the keys and values it sees by layer, none for its own."""

    given: dict = field(default_factory=dict)
    own: dict = field(default_factory=dict)  # what this frame has, written down

    def attention(self, call, attend):
        self.own[call.site.layer] = (call.k, call.v)
        k, v = self.given[call.site.layer] if self.given else (call.k, call.v)
        return softmax_attention(call.q, k, v, call.scale)


def joined(seen):
    """{layer: keys and values of several frames, end to end}."""
    return {name: tuple(torch.cat([s[name][i] for s in seen], -2) for i in (0, 1)) for name in seen[0]}


@torch.no_grad()
def by_hand(backbone, whole, group, kind=OneByOne):
    """[R, F, C, h, w]: gathers one frame after another, then swaps one frame after another."""
    seen = []
    for g in group:
        frame = kind(joined(seen) if seen else {})
        backbone.denoiser.predict(whole.select([g]), PLAIN.then(frame))
        seen.append(frame.own)
    frames, plan = range(whole.latents.shape[1]), PLAIN.then(kind(joined(seen)))
    return torch.cat([backbone.denoiser.predict(whole.select([f]), plan) for f in frames], 1)


@torch.no_grad()
def evaluated(backbone, whole, *controls, chunk=0):
    plan = EditPlan(controls)
    chunks = Chunks.asked(backbone.denoiser, whole.latents.shape[1], chunk, plan)
    return evaluate_with(backbone.denoiser.predict, whole, plan, chunks)


@pytest.mark.parametrize(("group", "chunk"), [(GROUP, 0), (GROUP, 4), ((5, 0, 2), 0), ((3,), 0), (range(FRAMES), 0)])
def test_gathering_as_a_batch_is_gathering_one_by_one(tiny_instruct64, group, chunk):
    whole = evaluation(tiny_instruct64)
    got = evaluated(tiny_instruct64, whole, GatherSwap(tuple(group)), chunk=chunk)
    assert_close(got, by_hand(tiny_instruct64, whole, group))
    assert (got - tiny_instruct64.denoiser.predict(whole)).abs().max() > 0.01


def test_it_acts_on_a_text_per_frame_too(tiny_instruct64):
    texts = per_frame(tiny_instruct64, *("make it blue", "a cross", "red", "green", "a circle", "white"))
    whole = evaluation(tiny_instruct64)
    whole = replace(whole, prompts=(*whole.prompts[:2], texts))
    got = evaluated(tiny_instruct64, whole, GatherSwap(GROUP))
    assert_close(got, by_hand(tiny_instruct64, whole, GROUP))


def test_the_order_of_the_group_changes_what_is_gathered_and_not_which_frames_are_swapped_in(tiny_instruct64):
    whole = evaluation(tiny_instruct64)
    one, other = (evaluated(tiny_instruct64, whole, GatherSwap(g)) for g in ((0, 2, 5), (5, 2, 0)))
    assert (one - other).abs().max() > 1e-3
    # Where every frame is the same, so is every order.
    same = whole.select([1] * FRAMES)
    one, other = (evaluated(tiny_instruct64, same, GatherSwap(g)) for g in ((0, 2, 5), (5, 2, 0)))
    assert_close(one, other)


def test_a_group_of_one_in_a_clip_of_that_frame_is_the_plain_edit(tiny_instruct64):
    trajectory = clip(tiny_instruct64, make_latents(1, SIZE))
    assert_close(run(tiny_instruct64, trajectory, PLAIN.then(GatherSwap(group=1))), run(tiny_instruct64, trajectory))


def test_keys_repeated_count_once(tiny_instruct64):
    """A clip of one frame repeated: the bank holds the same keys four times."""
    trajectory = clip(tiny_instruct64, make_latents(1, SIZE).expand(4, -1, -1, -1))
    want = run(tiny_instruct64, trajectory)
    for group in (1, 2, 4):
        assert_close(run(tiny_instruct64, trajectory, PLAIN.then(GatherSwap(group=group))), want)


def test_swapping_cross_attention_with_one_instruction_changes_nothing(tiny_instruct64):
    trajectory = clip(tiny_instruct64)
    plain = run(tiny_instruct64, trajectory)
    assert_close(run(tiny_instruct64, trajectory, PLAIN.then(GatherSwap(layers="cross"))), plain)
    both, alone = (
        run(tiny_instruct64, trajectory, PLAIN.then(GatherSwap(layers=n))) for n in ("self_and_cross", "self")
    )
    assert_close(both, alone)
    assert (both - plain).abs().max() > 0.01


def test_swapping_cross_attention_with_a_text_per_frame_acts(tiny_instruct64):
    trajectory = clip(tiny_instruct64)
    text = per_frame(tiny_instruct64, *("make it blue", "a cross", "red", "green", "a circle", "white"))
    plain, swapped = (
        run(tiny_instruct64, trajectory, p, text) for p in (PLAIN, PLAIN.then(GatherSwap(layers="cross")))
    )
    assert (plain - swapped).abs().max() > 0.01


def test_it_acts_on_the_first_steps_alone_if_told_so(tiny_instruct64):
    trajectory = clip(tiny_instruct64)
    runs = [run(tiny_instruct64, trajectory, PLAIN.then(GatherSwap(adapt_steps=n))) for n in range(STEPS + 2)]
    assert torch.equal(runs[0], runs[STEPS])
    assert torch.equal(runs[0], runs[STEPS + 1])
    assert all((a - b).abs().max() > 1e-3 for a, b in pairwise(runs[1 : STEPS + 1]))


@pytest.mark.parametrize("chunk", [1, 4])
def test_chunks_of_frames_change_nothing(tiny_instruct64, chunk):
    trajectory = clip(tiny_instruct64)
    plan = PLAIN.then(GatherSwap(group=3))
    assert_close(run(tiny_instruct64, trajectory, plan, chunk_frames=chunk), run(tiny_instruct64, trajectory, plan))


def test_the_source_row_stays_as_it_is(tiny_instruct64):
    whole = evaluation(tiny_instruct64, (SOURCE, *EDIT))
    got = evaluated(tiny_instruct64, whole, GatherSwap(GROUP))
    with torch.no_grad():
        assert_close(got[0], tiny_instruct64.denoiser.predict(whole)[0])
    assert_close(got[1:], evaluated(tiny_instruct64, whole.only(*EDIT), GatherSwap(GROUP)))


def test_nothing_is_kept_between_steps_or_runs(tiny_instruct):
    """The control is frozen; the bank hangs on the evaluation."""
    trajectory, plan = clip(tiny_instruct), PLAIN.then(GatherSwap(group=3))
    before = vars(plan.controls[0]).copy()
    first = run(tiny_instruct, trajectory, plan)
    assert vars(plan.controls[0]) == before
    assert torch.equal(run(tiny_instruct, trajectory, plan), first)


def test_keys_and_values_that_do_not_fit_on_the_device_wait_elsewhere(tiny_instruct, monkeypatch):
    from weft.methods import gather_swap as module

    moved = []
    monkeypatch.setattr(module, "_offloaded", lambda x: moved.append(x) or x)
    trajectory = clip(tiny_instruct)
    want = run(tiny_instruct, trajectory, PLAIN.then(GatherSwap(group=3)))
    assert moved == []
    assert torch.equal(run(tiny_instruct, trajectory, PLAIN.then(GatherSwap(group=3, resident=0))), want)
    layers = [s for s in tiny_instruct.denoiser.sites if s.kind in ("spatial", "cross")]
    assert len(moved) == 2 * len(layers) * STEPS
    moved.clear()
    run(tiny_instruct, trajectory, PLAIN.then(GatherSwap(group=3, resident=200_000)))
    assert 0 < len(moved) < 2 * len(layers) * STEPS


def test_evenly_spaced_frames():
    assert spread(8, 4) == (0, 2, 5, 7)
    assert spread(1440, 4) == (0, 480, 959, 1439)
    assert (spread(5, 5), spread(5, 1), spread(1, 1), spread(5, 2)) == ((0, 1, 2, 3, 4), (0,), (0,), (0, 4))
    for frames in range(1, 40):
        for size in range(1, frames + 1):
            got = spread(frames, size)
            assert len(set(got)) == size
            assert sorted(got) == list(got)


@pytest.mark.parametrize(
    ("numbers", "match"),
    [
        ({"layers": "temporal"}, "no layers 'temporal': want one of self_and_cross, self, cross"),
        ({"adapt_steps": -1}, r"adapt_steps must be 0 \(all steps\) or more, got -1"),
        ({"budget": -1}, "want budgets of 0 bytes or more"),
        ({"group": ()}, "want a group of different frames, at least one"),
        ({"group": (1, 1)}, r"want a group of different frames, at least one, got \(1, 1\)"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(numbers, match):
    with pytest.raises(ValueError, match=match):
        PLAIN.then(GatherSwap(**numbers))


@pytest.mark.parametrize(
    ("group", "match"),
    [
        (7, "want a group of 1 to 6 frames, as many as the clip has, got 7"),
        (0, "want a group of 1 to 6 frames"),
        ((0, 6, 9), r"the group wants frames \[6, 9\], and the clip has frames 0 to 5"),
    ],
)
def test_a_group_that_does_not_fit_the_clip_is_refused_before_anything_runs(tiny_instruct, group, match):
    class Never(Monitor):
        def check(self):
            raise AssertionError("the network was about to run")

    with pytest.raises(ValueError, match=match):
        run(tiny_instruct, clip(tiny_instruct), PLAIN.then(GatherSwap(group=group)), monitor=Never())


def test_a_bank_over_its_budget_says_how_much_it_takes(tiny_instruct):
    trajectory = clip(tiny_instruct)
    with pytest.raises(ValueError, match=r"take 0\.00\d+ GB a step and 0\.0001 GB are allowed: use a smaller group"):
        run(tiny_instruct, trajectory, PLAIN.then(GatherSwap(budget=int(1e-4 * 2**30))))


def test_models_whose_frames_see_each_other_are_refused(tiny):
    trajectory = invert(tiny, make_latents(), tiny.text.embed("a red square"), steps=2)
    with pytest.raises(ValueError, match="evaluates single frames, and 'tiny' looks at all frames together"):
        run(tiny, trajectory, PLAIN.then(GatherSwap(group=2)))


def test_an_inversion_is_refused(tiny_instruct):
    with pytest.raises(ValueError, match="an inversion has none: connect it to Edit Sampler's plan"):
        invert(
            tiny_instruct, make_latents(), tiny_instruct.text.embed(""), steps=2, plan=PLAIN.then(GatherSwap(group=2))
        )


@dataclass(frozen=True, eq=False)
class DropsRow(Control):
    """Evaluates the edit without its first guidance branch."""

    def evaluate(self, evaluation, evaluate):
        return evaluate(evaluation.only(*evaluation.rows[1:]))


def test_other_methods_evaluations_gather_their_own_rows(tiny_instruct64):
    """They are made around the gathering, however they are wired, so that no row is swapped that was not gathered."""
    whole, gather = evaluation(tiny_instruct64), GatherSwap(GROUP)
    want = evaluated(tiny_instruct64, whole.only(NEGATIVE, POSITIVE), gather)
    for controls in ((gather, DropsRow()), (DropsRow(), gather)):
        assert_close(evaluated(tiny_instruct64, whole, *controls), want)


@dataclass(frozen=True, eq=False)
class Mixes(Control):
    """Half of the edit's own attention, half of that by the map of the row before."""

    slot = "map"

    def attention(self, call, attend):
        if call.site.kind != "spatial":
            return attend(call)
        before = call.only(*call.rows[-1:], *call.rows[:-1])
        return (attend(call) + attend(replace(call.mapped(before), map_of=before.rows))) / 2


@dataclass(frozen=True, eq=False)
class MixesOneByOne(OneByOne):
    """The same for one frame, as `OneByOne`."""

    def attention(self, call, attend):
        own = super().attention(call, attend)
        if call.site.kind != "spatial":
            return own
        k, v = self.given[call.site.layer] if self.given else (call.k, call.v)
        return (own + softmax_attention(call.q.roll(1, 0), k.roll(1, 0), v, call.scale)) / 2


def test_a_map_of_another_row_sees_the_group_of_that_row(tiny_instruct64):
    """A layer called twice: each call gathers keys of its own, and swaps those."""
    whole = evaluation(tiny_instruct64)
    got = evaluated(tiny_instruct64, whole, GatherSwap(GROUP), Mixes())
    assert_close(got, by_hand(tiny_instruct64, whole, GROUP, MixesOneByOne))


def test_cancel_leaves_nothing_behind(tiny_instruct):
    class Cancelled(Exception):
        pass

    class Cancel(Monitor):
        asked = 0

        def check(self):
            self.asked += 1
            if self.asked == 4:  # in the second step, between two chunks
                raise Cancelled

    trajectory, plan = clip(tiny_instruct), PLAIN.then(GatherSwap(group=2))
    want = run(tiny_instruct, trajectory, plan)
    with pytest.raises(Cancelled):
        run(tiny_instruct, trajectory, plan, chunk_frames=3, monitor=Cancel())
    assert torch.equal(run(tiny_instruct, trajectory, plan), want)
