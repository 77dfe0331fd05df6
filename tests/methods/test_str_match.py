from dataclasses import dataclass, field, replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F

from weft.backbones.diffusers.loading import load_backbone
from weft.backbones.memory import PlainMemory
from weft.engine.call import Evaluation, Run
from weft.engine.edit import edit
from weft.engine.evaluate import evaluate_with
from weft.engine.inversion import invert
from weft.engine.monitor import Recording
from weft.engine.plan import PLAIN, Control, EditPlan, Needs, Step
from weft.engine.probe import read_calls
from weft.engine.source import Inverted
from weft.engine.words import POSITIVE, SOURCE
from weft.methods.fate_zero import FateZero
from weft.methods.spatio_temporal import SpatioTemporalAttention
from weft.methods.stem import STEMAttention
from weft.methods.str_inputs import site_pairs
from weft.methods.str_match import RELATIVE_STEP, STRLatentOptimizer
from weft.tests.engine.test_inversion import Listening
from weft.tests.numerics import assert_close
from weft.tests.tiny import FRAMES, SIZE, make_latents

STEPS, LEVEL = 4, 3
CONTROL = 1e-8  # of the gradient through the whole network, relative to its largest entry


def make_step(backbone, z=None, positive="a blue cross", level=LEVEL, frames=FRAMES, monitor=None, plan=PLAIN):
    """A step at `level` of a made-up trajectory; by default the edit has left the source a little.

    It reads what `plan` makes of one row alone.
    """
    source, target = backbone.text.embed("a red square"), backbone.text.embed(positive)
    latents = torch.stack([make_latents(frames, SIZE, seed) for seed in range(STEPS + 1)]) / 2
    schedule, fingerprint = backbone.denoiser.schedule(STEPS), backbone.denoiser.fingerprint
    trajectory = Inverted(latents, schedule, source, "warm_start", fingerprint)
    dtype = backbone.denoiser.network.dtype
    z = latents[level].to(dtype) + 0.3 * make_latents(frames, SIZE, 9).to(dtype) if z is None else z
    monitor = monitor or Recording()

    def read(edited, of_source, layers):
        row, prompt, x = (SOURCE, source, of_source) if edited is None else (POSITIVE, target, edited)
        run = Run(STEPS - level, STEPS, monitor)
        e = Evaluation(x[None], schedule.label(level), (prompt,), (row,), run=run)
        return read_calls(partial(evaluate_with, backbone.denoiser.predict), e, plan, row, layers)

    return Step(z, level, STEPS - level, STEPS, trajectory, target, backbone.denoiser, monitor, 0, {}, read)


def optimizer(**numbers):
    return PLAIN.then(STRLatentOptimizer(**numbers)).controls[0]


def gradient(step, **numbers):
    """What a step of plain descent at strength 1 takes away."""
    return step.latents - optimizer(strength=1.0, **numbers).before_step(step)


# ---- the definition, written out from the paper and run through the unmodified network ------------------------------


def self_attention(backbone, z, label, prompt, site):
    """(q, k) [groups, H, tokens, D] of one layer, caught at its projections."""
    caught, layer = {}, backbone.denoiser.network.get_submodule(site.layer)
    hooks = [
        getattr(layer, n).register_forward_hook(lambda m, i, out, n=n: caught.update({n: out}))
        for n in ("to_q", "to_k")
    ]
    backbone.denoiser.network(z[None].transpose(1, 2), label, prompt.cond["embedding"].to(z))
    for hook in hooks:
        hook.remove()
    return [caught[n].unflatten(-1, (layer.heads, -1)).transpose(1, 2) for n in ("to_q", "to_k")]


def maps(backbone, z, label, prompt, site):
    """Attention maps [groups, H, tokens, tokens]."""
    q, k = self_attention(backbone, z, label, prompt, site)
    return (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)


def omega(s, t, neighbours):
    """Equation 4: s [F, n, n] and t [n, F, F] -> [F, n, n]."""
    frames, out = len(s), []
    for i in range(frames):
        total = torch.zeros_like(s[0])
        for j in range(frames):
            if 0 < abs(i - j) <= neighbours:
                total = total + t[:, i, j, None] * s[j] + s[i] * t[None, :, i, j]
                total = total + t[None, :, j, i] * s[i].T + s[j].T * t[:, j, i, None]
        out.append(total)
    return torch.stack(out)


def cosines(a, b, reduction):
    """[layers][rows F n, entries] of source and target -> the loss."""
    if reduction == "global":
        a, b = [torch.cat([x.flatten() for x in side])[None] for side in (a, b)]
    elif reduction == "layer":
        a, b = ([x.reshape(1, -1) for x in side] for side in (a, b))
    elif reduction == "frame":
        a, b = ([x.transpose(0, -3).flatten(1) for x in side] for side in (a, b))
    return -sum(F.cosine_similarity(x, y, dim=-1, eps=0).sum() for x, y in zip(a, b))


def naive_gradient(
    backbone, step, *, reduction="row_sum", neighbours=1, heads="mean", levels="all_but_finest", **choice
):
    z = step.latents.clone().requires_grad_()
    label = step.trajectory.schedule.label(step.level)
    source_level = step.level - (choice.get("source_score") == "inversion")

    def scores(latents, prompt):
        out = []
        for spatial, temporal in site_pairs(backbone.denoiser, levels):
            s = maps(backbone, latents, label, prompt, spatial).transpose(0, 1)  # [H, F, n, n]
            t = maps(backbone, latents, label, prompt, temporal).transpose(0, 1)  # [H, n, F, F]
            if heads == "mean":
                s, t = s.mean(0, keepdim=True), t.mean(0, keepdim=True)
            if choice.get("score") == "maps":
                out += [s, t]
            else:
                out.append(torch.stack([omega(*pair, neighbours) for pair in zip(s, t)]))
        return out

    with torch.no_grad():
        source = scores(step.source_latents(source_level), step.trajectory.prompt)
    target = scores(z, step.positive)
    if choice.get("score") == "maps":
        loss = sum((a - b).square().sum() for a, b in zip(source, target))
    else:
        loss = cosines(source, target, reduction)
    return torch.autograd.grad(loss, z)[0], loss.item()


CHOICES = [
    {},
    {"neighbours": 2, "levels": "all"},
    {"reduction": "frame", "source_score": "inversion"},
    {"reduction": "layer"},
    {"reduction": "global", "neighbours": 2},
    {"heads": "per_head"},
    {"heads": "per_head", "reduction": "frame"},
    {"heads": "per_head", "reduction": "global"},
    {"score": "maps", "source_score": "inversion"},
]


@pytest.mark.parametrize("choice", CHOICES, ids=lambda c: " ".join(map(str, c.values())) or "default")
def test_the_step_is_the_gradient_of_the_papers_loss(tiny64, choice):
    step = make_step(tiny64)
    want, loss = naive_gradient(tiny64, step, **choice)
    got = gradient(step, **choice)
    error = (got - want).abs().max() / want.abs().max()
    assert error <= CONTROL, f"off by {error:.2e}"
    (record,) = step.monitor.records
    assert record["loss"] == pytest.approx(loss, rel=1e-6)
    assert record["gradient"] == pytest.approx(want.norm().item(), rel=1e-6)
    assert record["relative_step"] == pytest.approx((want.norm() / step.latents.norm()).item(), rel=1e-6)
    assert record["step"] == step.index == 1


def test_more_frames_than_neighbours_reach(tiny64):
    step = make_step(tiny64, frames=5)
    want, _ = naive_gradient(tiny64, step, neighbours=2)
    assert (gradient(step, neighbours=2) - want).abs().max() <= CONTROL * want.abs().max()


def test_choices_make_a_difference(tiny64):
    """Or the comparison above could hold while the options do nothing."""
    step = make_step(tiny64)
    gradients = [gradient(step, **choice) for choice in CHOICES]
    for i, a in enumerate(gradients):
        assert all((a - b).norm() > 1e-3 * a.norm() for b in gradients[:i])


def test_the_inversions_score_is_read_one_level_cleaner_with_the_noisier_label(tiny64, monkeypatch):
    step, seen = make_step(tiny64), []
    predict = tiny64.denoiser.predict
    monkeypatch.setattr(tiny64.denoiser, "predict", lambda e, plan=PLAIN: seen.append(e) or predict(e, plan))
    for choice, level in (("recompute", LEVEL), ("inversion", LEVEL - 1)):
        seen.clear()
        gradient(step, source_score=choice)
        source, target = seen
        assert torch.equal(source.latents[0], step.trajectory.latents[level].double())
        assert torch.equal(target.latents[0], step.latents)
        assert source.label == target.label == step.trajectory.schedule.label(LEVEL)
        assert (source.prompts, target.prompts) == ((step.trajectory.prompt,), (step.positive,))


# ---- what a step does -----------------------------------------------------------------------------------------------


def kept_of_source(tiny64, monkeypatch, **choice):
    kept, pull = [], STRLatentOptimizer.pull

    def spy(self, source, target, z):
        kept.extend(zip(source, target))
        return pull(self, source, target, z)

    monkeypatch.setattr(STRLatentOptimizer, "pull", spy)
    gradient(make_step(tiny64), **choice)
    assert kept
    return kept


def test_of_the_source_no_more_is_kept_than_queries_keys_and_temporal_maps(tiny64, monkeypatch):
    """While the target's graph is there, which is the peak of an edit's memory."""
    for (q, k, maps), (spatial, _) in kept_of_source(tiny64, monkeypatch):
        frames, _, tokens, _ = q.shape
        assert q.untyped_storage().nbytes() == k.untyped_storage().nbytes() == spatial.q.numel() * spatial.q.itemsize
        assert maps.untyped_storage().nbytes() == tokens * frames**2 * maps.itemsize
        assert not any(x.requires_grad for x in (q, k, maps))


def test_of_the_source_the_papers_baseline_keeps_queries_and_keys(tiny64, monkeypatch):
    for source, _ in kept_of_source(tiny64, monkeypatch, score="maps"):
        for call in source:
            assert call.v.numel() == call.tokens.numel() == call.key_tokens.numel() == 0
            assert call.beside is None


def losses(step, *moved):
    """The loss at each of some latents."""
    for z in moved:
        optimizer().before_step(replace(step, latents=z))
    return [r["loss"] for r in step.monitor.records[-len(moved) :]]


def test_a_small_step_lowers_the_loss(tiny64):
    step = make_step(tiny64)
    z = optimizer(strength=1e-4).before_step(step)
    before, after = losses(step, step.latents, z)
    predicted = 1e-4 * step.monitor.records[0]["gradient"] ** 2
    assert before - after == pytest.approx(predicted, rel=0.05)


def test_many_steps_pull_the_edit_to_the_sources_score(tiny):
    step = make_step(tiny)
    for _ in range(8):
        step = replace(step, latents=optimizer(step_mode="relative", strength=0.1).before_step(step))
    loss = [r["loss"] for r in step.monitor.records]
    floor = -sum(FRAMES * n for n in (15, 6, 15, 15))
    assert loss[-1] - floor < 0.6 * (loss[0] - floor)


def test_the_source_under_its_own_prompt_is_left_where_it_is(tiny64):
    step = make_step(tiny64, positive="a red square")
    step = replace(step, latents=step.source_latents().double())
    for reduction, count in {
        "row_sum": FRAMES * (15 + 6 + 15 + 15),
        "frame": 4 * FRAMES,
        "layer": 4,
        "global": 1,
    }.items():
        moved = gradient(step, reduction=reduction)
        assert step.monitor.records[-1]["loss"] == pytest.approx(-count, rel=1e-12)
        assert moved.abs().max() < 1e-9
    assert gradient(step, score="maps").abs().max() < 1e-12
    assert step.monitor.records[-1]["loss"] == 0


def test_the_target_prompt_matters(tiny64):
    """A step evaluates the target under the target prompt, not under the source's."""
    other, own = make_step(tiny64), make_step(tiny64, positive="a red square")
    assert (gradient(other) - gradient(own)).norm() > 1e-4 * gradient(own).norm()


@pytest.mark.parametrize("reduction", ["row_sum", "global"])
@pytest.mark.parametrize("strength", [0.005, 0.01, 0.1])
def test_relative_steps_have_the_stated_length(tiny64, strength, reduction):
    step = make_step(tiny64)
    moved = optimizer(strength=strength, step_mode="relative", reduction=reduction).before_step(step) - step.latents
    assert moved.norm().item() == pytest.approx(strength / 0.01 * RELATIVE_STEP * step.latents.norm().item())
    assert step.monitor.records[0]["relative_step"] == pytest.approx(strength / 0.01 * 0.002)
    direction = -gradient(step, reduction=reduction)
    assert F.cosine_similarity(moved.flatten(), direction.flatten(), dim=0).item() == pytest.approx(1)


def test_a_step_changes_nothing_it_was_given(tiny64):
    step = make_step(tiny64)
    before, source = step.latents.clone(), step.trajectory.latents.clone()
    moved = optimizer(strength=1.0).before_step(step)
    assert torch.equal(step.latents, before)
    assert torch.equal(step.trajectory.latents, source)
    assert not moved.requires_grad
    assert moved.dtype == before.dtype


@pytest.mark.parametrize("level", [4, 3, 2, 1])
@pytest.mark.parametrize(
    ("window", "acts_on"), [((0, 1), [4, 3, 2, 1]), ((0.25, 0.75), [3, 2]), ((0.3, 0.6), [2]), ((0.5, 0.5), [])]
)
def test_it_acts_within_its_window_only(tiny, level, window, acts_on):
    step = make_step(tiny, level=level)
    moved = optimizer(strength=1.0, start=window[0], end=window[1]).before_step(step)
    assert (moved is not step.latents) == (level in acts_on)
    assert len(step.monitor.records) == (level in acts_on)


# ---- within an edit -------------------------------------------------------------------------------------------------


@pytest.fixture
def trajectory(tiny):
    return invert(tiny, make_latents(), tiny.text.embed("a red square"), steps=3)


@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_strength_zero_is_the_plain_edit_bit_for_bit(tiny, trajectory, guidance):
    target = tiny.text.embed("a blue cross")
    plain = edit(tiny, trajectory, target, guidance=guidance)
    plan = PLAIN.then(STRLatentOptimizer(strength=0.0))
    assert torch.equal(edit(tiny, trajectory, target, plan=plan, guidance=guidance), plain)
    plan = PLAIN.then(STRLatentOptimizer(strength=0.5))
    assert not torch.equal(edit(tiny, trajectory, target, plan=plan, guidance=guidance), plain)


def test_every_step_is_logged_and_the_edit_repeats_to_the_bit(tiny, trajectory):
    plan, target, monitor = PLAIN.then(STRLatentOptimizer(strength=0.1)), tiny.text.embed("a blue cross"), Recording()
    once = edit(tiny, trajectory, target, plan=plan, monitor=monitor)
    assert [r["step"] for r in monitor.records] == [0, 1, 2]
    assert all(set(r) == {"step", "loss", "gradient", "relative_step"} for r in monitor.records)
    assert all(r["gradient"] > 0 for r in monitor.records)
    assert torch.equal(edit(tiny, trajectory, target, plan=plan), once)


@pytest.mark.parametrize("at", [1, 2])
def test_guidance_can_be_cancelled_and_leaves_the_model_as_it_was(tiny, at):
    """The fixture compares processors and hooks."""
    step = make_step(tiny, monitor=Listening(raise_at=at))
    with pytest.raises(KeyboardInterrupt):
        optimizer().before_step(step)


def test_the_forward_stops_after_the_last_layer_it_needs(tiny):
    ran = []
    hook = tiny.denoiser.network.up_blocks[2].register_forward_hook(lambda *_: ran.append(1))
    step = make_step(tiny)
    optimizer().before_step(step)
    assert ran == []
    optimizer(levels="all").before_step(step)
    assert ran == []  # left within the block, at its last attention
    hook.remove()


def test_a_gradient_that_is_not_finite_stops_the_edit(tiny):
    step = make_step(tiny)
    z = step.latents.clone()
    z[0, 0, 0, 0] = float("nan")
    control = optimizer()
    control.before_step(replace(step, latents=z))
    with pytest.raises(ValueError, match="gradient of the STR loss is NaN or infinite: load the model in float32"):
        control.after_step(step)


@pytest.mark.parametrize(("dtype", "reduction"), [("bfloat16", "row_sum"), ("float16", "global")])
def test_half_precision_gradients_keep_their_direction(tiny, tiny_folder, dtype, reduction):
    half = load_backbone(tiny_folder, dtype=dtype, memory=PlainMemory("cpu"))
    step = make_step(tiny)
    want = gradient(step, reduction=reduction, levels="all")
    got = gradient(make_step(half, step.latents), reduction=reduction, levels="all")
    assert got.dtype == torch.float32
    assert F.cosine_similarity(got.flatten(), want.flatten(), dim=0) > 0.9
    assert got.norm().item() == pytest.approx(want.norm().item(), rel=0.3)


@dataclass(frozen=True, eq=False)
class Compares(Control):
    """Reads a step as STR-Match does, and writes down what the step's evaluation then has there."""

    slot = "inject"
    layers: frozenset[str]
    beside: bool = False  # whether the evaluation is to have the source's row too
    read: dict = field(default_factory=dict)  # of the source and of the edit, before any step
    evaluated: dict = field(default_factory=dict)
    reading: list = field(default_factory=list)

    def needs(self):
        return Needs(source=self.beside)

    def before_step(self, step):
        self.reading.append(1)
        source = step.source_latents()
        self.read.setdefault(SOURCE, []).append(step.read(None, source, self.layers))
        self.read.setdefault(POSITIVE, []).append(step.read(step.latents, source, self.layers))
        self.reading.clear()
        return step.latents

    def attention(self, call, attend):
        # A pass of the source alone, as FateZero makes for its words, is not the step's evaluation.
        if call.site.layer in self.layers and not self.reading and POSITIVE in call.rows:
            for row in {SOURCE, POSITIVE} & set(call.rows):
                steps = self.evaluated.setdefault(row, {})
                steps.setdefault(call.run.step, {})[call.site.layer] = call.only(row)
        return attend(call)


STEM = {"bases": 4, "iterations": 2, "temperature": 1.0}


@pytest.mark.parametrize(
    ("control", "beside"),
    [
        (STEMAttention(**STEM), False),
        (STEMAttention(**STEM), True),
        (STEMAttention(**STEM, space="hidden"), False),
        (STEMAttention(**STEM, shared=True), True),
        (SpatioTemporalAttention(), False),
        (FateZero(words=("square",)), True),
    ],
    ids=["STEM", "STEM beside the source", "STEM of hidden tokens", "STEM by shared bases", "all frames", "FateZero"],
)
def test_what_is_read_is_what_the_evaluation_is_made_of(tiny64, trajectory, control, beside):
    """Layers behind the first take in what a control made of those before them, so a read without it would differ."""
    layers = frozenset(site.layer for pair in site_pairs(tiny64.denoiser) for site in pair)
    compares, target = Compares(layers, beside), tiny64.text.embed("a blue cross")
    edit(tiny64, trajectory, target, plan=EditPlan((compares, control)), guidance=2)
    plain = Compares(layers)
    edit(tiny64, trajectory, target, plan=EditPlan((plain,)), guidance=2)
    rows = {SOURCE, POSITIVE} if beside else {POSITIVE}
    assert set(compares.evaluated) == rows
    for row in rows:
        assert sorted(compares.evaluated[row]) == [0, 1, 2]
        for step, calls in compares.evaluated[row].items():
            assert set(calls) == set(layers)
            for layer, call in calls.items():
                read = compares.read[row][step][layer]
                assert read.rows == (row,)
                for name in ("q", "k", "v"):
                    assert_close(getattr(read, name), getattr(call, name))
    last = max(layers, key=lambda layer: next(s.order for s in tiny64.denoiser.sites if s.layer == layer))
    reads = (c.read[POSITIVE][0][last].q for c in (compares, plain))
    assert not torch.allclose(*reads)


@pytest.mark.parametrize("space", ["key_per_head", "hidden"])
def test_under_stem_the_step_is_the_gradient_of_the_loss_of_what_is_evaluated(tiny64, space, monkeypatch):
    """By central differences of the loss, which is read under the plan too, with tokens kept at their bases: the slope
    of that choice is left out. Without the plan the gradient is another."""
    plan = PLAIN.then(STEMAttention(**STEM, space=space))
    estimated, means, kept = STEMAttention._estimated, STEMAttention._means, {}

    def once(self, tokens, call):
        key = call.site.layer, call.rows
        if key not in kept:
            kept[key] = estimated(self, tokens, call), tokens.detach()
        return kept[key][0]

    def of_those(self, tokens, values, before):
        (first,) = (tokens for start, tokens in kept.values() if start is before)
        return means(self, first, values, before)

    monkeypatch.setattr(STEMAttention, "_estimated", once)
    monkeypatch.setattr(STEMAttention, "_means", of_those)
    step = make_step(tiny64, plan=plan)
    got, direction = gradient(step), torch.randn(FRAMES, 4, *SIZE, dtype=torch.float64)
    with torch.enable_grad():  # as where the gradient was taken: keys are means, not the bases of the last round
        above, below = losses(step, step.latents + 1e-5 * direction, step.latents - 1e-5 * direction)
    assert (above - below) / 2e-5 == pytest.approx((got * direction).sum().item(), rel=1e-4)
    plain = gradient(make_step(tiny64))
    assert (got - plain).norm() > 1e-2 * plain.norm()


def test_at_stems_temperature_the_gradient_is_no_larger_than_without_it(tiny):
    """Nearly hard choices have a slope that grows with 1 over the temperature, and drowned the edit."""
    plain, got = (gradient(make_step(tiny, plan=p)).norm() for p in (PLAIN, PLAIN.then(STEMAttention(bases=8))))
    assert 0.05 * plain < got < 5 * plain


# ---- numbers and choices --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("numbers", "match"),
    [
        ({"strength": -0.1}, r"strength must be 0 or more, got -0\.1: 0 is the plain edit"),
        ({"strength": float("nan")}, "strength must be 0 or more, got nan"),
        ({"neighbours": 0}, "neighbours must be 1 or more, got 0"),
        ({"start": 0.6, "end": 0.5}, r"want 0 <= start <= end <= 1, shares of the run, got 0\.6 and 0\.5"),
        ({"start": -0.1}, r"want 0 <= start <= end <= 1, .* got -0\.1 and 1"),
        ({"end": 1.5}, r"want 0 <= start <= end <= 1, .* got 0\.0 and 1\.5"),
        ({"reduction": "mean"}, "no reduction 'mean': want one of row_sum, frame, layer, global"),
        ({"step_mode": "adam"}, "no step_mode 'adam': want one of sgd, relative"),
        ({"heads": "max"}, "no heads 'max': want one of mean, per_head"),
        ({"levels": "finest"}, "no levels 'finest': want one of all_but_finest, all"),
        ({"source_score": "stored"}, "no source_score 'stored': want one of recompute, inversion"),
        ({"score": "l2"}, "no score 'l2': want one of str, maps"),
    ],
)
def test_numbers_out_of_range_and_unknown_choices_are_refused(numbers, match):
    with pytest.raises(ValueError, match=match):
        PLAIN.then(STRLatentOptimizer(**numbers))
