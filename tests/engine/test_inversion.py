import logging
from dataclasses import dataclass, replace

import pytest
import torch

from weft.backbones.diffusers.text import prompt_of
from weft.engine.edit import edit
from weft.engine.inversion import invert
from weft.engine.monitor import Monitor
from weft.engine.plan import PLAIN, Control, Needs, Region
from weft.engine.source import Inverted
from weft.engine.words import SOURCE
from weft.tests.engine.analytic import Gaussian
from weft.tests.engine.test_schedule import PREDICTIONS, TRAINED, ZERO_SNR
from weft.tests.numerics import assert_close
from weft.tests.tiny import make_latents

TRAILING = {"timestep_spacing": "trailing", "steps_offset": 0}
MODELS = [{"prediction_type": p} for p in PREDICTIONS] + [{"prediction_type": "v_prediction", **TRAILING}, ZERO_SNR]
NAMES = ["epsilon", "v", "flow", "v trailing", "v from pure noise"]


def round_trip_db(backbone, steps=50, **options):
    """Signal over error, in dB, of inverting a clip and sampling it again under its own prompt."""
    clip, prompt = backbone.sample(), backbone.text.embed("")
    back = edit(backbone, invert(backbone, clip, prompt, steps=steps, **options), prompt, guidance=1.0)
    return 10 * torch.log10(clip.square().sum() / (back - clip).square().sum()).item()


@pytest.mark.parametrize("config", MODELS, ids=NAMES)
def test_many_warm_evaluations_invert_the_sampler_to_float_precision(config):
    assert round_trip_db(Gaussian(**config), evaluations=40) > 105


def test_one_warm_evaluation_beats_the_papers_convention_which_suits_epsilon_only():
    warm = {p: round_trip_db(Gaussian(prediction_type=p)) for p in PREDICTIONS}
    paper = {p: round_trip_db(Gaussian(prediction_type=p), convention="paper") for p in PREDICTIONS}
    assert warm["epsilon"] > paper["epsilon"] + 10
    assert warm["flow"] > paper["flow"] + 10
    assert warm["v_prediction"] > paper["v_prediction"] + 20
    assert paper["epsilon"] > paper["v_prediction"] + 6


@pytest.mark.parametrize("prediction", TRAINED)
@pytest.mark.parametrize("to_one", [False, True])
@pytest.mark.parametrize(("spacing", "offset"), [("leading", 1), ("leading", 0), ("trailing", 0)])
def test_the_papers_convention_is_diffusers_inverse_scheduler(spacing, offset, to_one, prediction):
    from diffusers import DDIMInverseScheduler

    backbone = Gaussian(
        prediction_type=prediction, timestep_spacing=spacing, steps_offset=offset, set_alpha_to_one=to_one
    )
    clip, prompt = backbone.sample(), backbone.text.embed("a dog")
    got = invert(backbone, clip, prompt, steps=10, convention="paper")
    labels = [e.label for e in backbone.evaluations]

    scheduler = DDIMInverseScheduler.from_config(backbone.denoiser.config)
    scheduler.set_timesteps(10)
    z = backbone.codec.scale(clip)
    assert scheduler.timesteps.tolist() == labels
    for level, t in enumerate(scheduler.timesteps, 1):
        evaluation = replace(backbone.evaluations[0], latents=z[None], label=float(t))
        z = scheduler.step(backbone.denoiser.predict(evaluation)[0], int(t), z).prev_sample
        assert_close(got.latents[level], z.float())


@pytest.mark.parametrize(
    ("options", "count"),
    [({"convention": "paper"}, 6), ({}, 7), ({"evaluations": 3}, 19)],
    ids=["paper", "warm start", "three a step"],
)
def test_evaluations_are_counted_and_carry_the_noisier_label(options, count):
    backbone = Gaussian()
    clip, prompt = backbone.sample(), backbone.text.embed("a dog")
    trajectory = invert(backbone, clip, prompt, steps=6, **options)
    calls, schedule = backbone.evaluations, trajectory.schedule
    assert len(calls) == count
    assert {(e.rows, e.prompts) for e in calls} == {((SOURCE,), (prompt,))}
    assert torch.equal(calls[0].latents[0], backbone.codec.scale(clip))
    assert calls[0].label == schedule.label(1)
    levels = [level for level in range(1, 7) for _ in range(options.get("evaluations", 1))]
    levels = levels if count == 6 else [1] + levels
    assert [e.label for e in calls] == [schedule.label(level) for level in levels]
    assert [e.run.step for e in calls] == [6 - level for level in levels]


def test_what_comes_out_belongs_to_the_clip(caplog):
    backbone = Gaussian()
    clip, prompt = backbone.sample(frames=5).double(), backbone.text.embed("a dog")
    with caplog.at_level(logging.INFO, logger="weft.engine.inversion"):
        trajectory = invert(backbone, clip, prompt, steps=4)
    assert trajectory.latents.shape == (5, 5, 4, 6, 10)
    assert trajectory.latents.dtype == torch.float32
    assert torch.equal(trajectory.latents[0], backbone.codec.scale(clip).float())
    assert isinstance(trajectory, Inverted)
    assert (trajectory.prompt, trajectory.convention, trajectory.model) == (prompt, "warm_start", "gaussian")
    assert trajectory.noise_std == pytest.approx(trajectory.latents[-1].std().item())
    assert f"std(z_T) {trajectory.noise_std:.3f}" in caplog.text
    assert backbone.reserved == [5 * 6 * 10]
    clip.zero_()
    assert trajectory.latents[0].any()


def test_a_trajectory_may_fill_its_budget():
    backbone = Gaussian()
    trajectory = invert(backbone, backbone.sample(), backbone.text.embed(""), steps=3, budget=4 * 3 * 4 * 60 * 4)
    assert trajectory.latents.nbytes == 4 * 3 * 4 * 60 * 4


def test_the_noise_of_a_gaussian_clip_is_near_one():
    backbone = Gaussian(prediction_type="v_prediction")
    trajectory = invert(backbone, backbone.sample(), backbone.text.embed(""), steps=50)
    assert 0.85 < trajectory.noise_std < 1.3


@dataclass(frozen=True)
class Silence(Control):
    def evaluate(self, evaluation, evaluate):
        return torch.zeros_like(evaluate(evaluation))


@pytest.mark.parametrize("convention", ["warm_start", "paper"])
def test_evaluation_controls_shape_the_inversion(convention):
    backbone = Gaussian()
    clip, prompt = backbone.sample(), backbone.text.embed("")
    trajectory = invert(backbone, clip, prompt, steps=5, convention=convention, plan=PLAIN.then(Silence()))
    signal = torch.tensor(trajectory.schedule.signal)
    want = (signal / signal[0]).view(-1, 1, 1, 1, 1) * backbone.codec.scale(
        clip
    )  # without noise only the signal shrinks
    assert_close(trajectory.latents, want)
    assert backbone.denoiser.plans[0].controls == (Silence(),)


class Listening(Monitor):
    def __init__(self, raise_at=None):
        self.checks, self.steps, self.raise_at = 0, [], raise_at

    def check(self):
        self.checks += 1
        if self.checks == self.raise_at:
            raise KeyboardInterrupt

    def progress(self, done, total, preview=None):
        self.steps.append((done, total, preview))


def test_progress_is_told_after_every_step_and_cancel_asked_before_every_evaluation():
    backbone, monitor = Gaussian(), Listening()
    clip = backbone.sample()
    invert(backbone, clip, backbone.text.embed(""), steps=4, evaluations=2, monitor=monitor)
    assert [s[:2] for s in monitor.steps] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert torch.equal(monitor.steps[2][2], backbone.codec.scale(clip))
    assert monitor.checks == len(backbone.evaluations) == 9


@dataclass(frozen=True)
class Untouched(Control):
    def attention(self, call, attend):
        return attend(call)


def test_a_cancelled_inversion_leaves_the_model_as_it_was(tiny):
    prompt, plan = tiny.text.embed("a red square"), PLAIN.then(Untouched())
    before = invert(tiny, make_latents(), prompt, steps=2)
    with pytest.raises(KeyboardInterrupt):
        invert(tiny, make_latents(), prompt, steps=2, plan=plan, monitor=Listening(raise_at=2))
    assert torch.equal(invert(tiny, make_latents(), prompt, steps=2).latents, before.latents)


def refused(match, clip=None, prompt=None, **options):
    backbone = Gaussian()
    with pytest.raises(ValueError, match=match):
        invert(
            backbone,
            backbone.sample() if clip is None else clip,
            prompt or backbone.text.embed("a dog"),
            **{"steps": 3, **options},
        )
    assert backbone.evaluations == []  # nothing ran


def test_what_cannot_be_inverted_says_why():
    refused("no inversion convention 'exact': want 'warm_start' or 'paper'", convention="exact")
    refused("want at least 1 evaluation a step, got 0", evaluations=0)
    refused("want 1 to 1000 steps, .* got 0", steps=0)
    foreign = replace(Gaussian().text.embed("a dog"), encoder="0123")
    refused("'a dog' was encoded by another model than 'gaussian': encode it with this one", prompt=foreign)
    per_frame = prompt_of(torch.zeros(5, 2, 3), "a dog", "gaussian text")
    refused("the prompt 'a dog' has embeddings for 5 frames and the clip has 3", prompt=per_frame)
    refused(r"would take 0.0 GB and 0.0 GB are allowed: use fewer frames or steps", budget=4 * 3 * 4 * 60 * 4 - 1)
    for bad in (float("nan"), float("inf")):
        clip = Gaussian().sample()
        clip[1, 2, 3, 4] = bad
        refused("the latents to invert hold NaN or infinity: check the frames", clip=clip)


@dataclass(frozen=True)
class Stepping(Control):
    def after_step(self, step):
        return step.latents


class OfAnEdit(Control):
    def needs(self):
        return Needs(edit=True)


class Unfit(Control):
    def check(self, trajectory, model, target):
        assert trajectory.shape == (3, 4, 6, 10)
        assert target is None
        raise ValueError("not with this clip")


def test_controls_that_act_on_steps_or_edits_cannot_shape_an_inversion():
    refused("Stepping acts on sampling steps and cannot guide an inversion", plan=PLAIN.then(Stepping()))
    refused("Of An Edit acts on an edit, and an inversion has none: connect it to Edit", plan=PLAIN.then(OfAnEdit()))
    refused("not with this clip", plan=PLAIN.then(Unfit()))
    region = Region(Gaussian().text.embed("a cat"))
    refused("regions are of an edit, and an inversion has none", plan=PLAIN.with_region(region))


@pytest.mark.parametrize("convention", ["warm_start", "paper"])
@pytest.mark.parametrize("edit_steps", [1, 2, 3, 6])
def test_an_edit_of_fewer_steps_keeps_every_so_many_levels(convention, edit_steps):
    backbone = Gaussian()
    clip, prompt = backbone.sample(), backbone.text.embed("a dog")
    whole = invert(backbone, clip, prompt, steps=6, convention=convention)
    before, monitor = len(backbone.evaluations), Listening()
    some = invert(backbone, clip, prompt, steps=6, convention=convention, edit_steps=edit_steps, monitor=monitor)
    assert torch.equal(some.latents, whole.thinned(edit_steps).latents)
    assert some.schedule == whole.schedule.thinned(edit_steps)
    assert (len(backbone.evaluations), len(monitor.steps)) == (2 * before, 6)  # it takes all its steps
    assert (some.prompt, some.convention, some.model) == (prompt, convention, "gaussian")


def test_only_the_levels_that_are_kept_count_for_the_budget():
    bytes_of_a_level = 3 * 4 * 60 * 4
    refused("use fewer frames or steps", steps=6, budget=3 * bytes_of_a_level)
    backbone = Gaussian()
    clip, prompt = backbone.sample(), backbone.text.embed("a dog")
    some = invert(backbone, clip, prompt, steps=6, edit_steps=2, budget=3 * bytes_of_a_level)
    assert some.latents.nbytes == 3 * bytes_of_a_level


def test_an_edit_of_steps_that_do_not_divide_the_inversions_is_refused():
    refused("3 steps cannot be thinned to 2: want a number that divides them", edit_steps=2)
    refused("3 steps cannot be thinned to 6", edit_steps=6)


@pytest.mark.parametrize(
    ("shape", "match"),
    [
        ((1, 4, 6, 10), "want a clip of at least 2 frames, got 1"),
        ((3, 5, 6, 10), r"'tiny' wants latents \[F, 4, h, w\], got \[3, 5, 6, 10\]: encode the frames"),
        ((1, 4, 3, 6, 10), r"'tiny' wants latents \[F, 4, h, w\], got \[1, 4, 3, 6, 10\]"),
    ],
)
def test_latents_of_another_shape_are_refused(tiny, shape, match):
    with pytest.raises(ValueError, match=match):
        invert(tiny, torch.zeros(shape), tiny.text.embed("a red square"), steps=2)


@dataclass(frozen=True)
class Spoil(Control):
    def evaluate(self, evaluation, evaluate):
        return evaluate(evaluation) * (float("nan") if evaluation.run.step == 1 else 1)


@pytest.mark.parametrize("convention", ["warm_start", "paper"])
def test_an_inversion_that_becomes_nan_stops_at_once(convention):
    backbone = Gaussian()
    with pytest.raises(ValueError, match="became NaN or infinite at step 3 of 4: load in float32"):
        invert(
            backbone,
            backbone.sample(),
            backbone.text.embed(""),
            steps=4,
            convention=convention,
            plan=PLAIN.then(Spoil()),
        )


def test_a_warm_start_on_a_flow_model_is_uni_inv():
    """arXiv 2504.13109: guess with the last velocity, look there, and take that step instead."""
    backbone = Gaussian(prediction_type="flow")
    clip, prompt = backbone.sample(), backbone.text.embed("a dog")
    got = invert(backbone, clip, prompt, steps=5)
    e, schedule, z = backbone.evaluations[0], got.schedule, backbone.codec.scale(clip)

    def velocity(x, level):
        return backbone.denoiser.predict(replace(e, latents=x[None], label=schedule.label(level)))[0]

    v = velocity(z, 1)
    for level in range(1, 6):
        step = schedule.noise[level] - schedule.noise[level - 1]
        v = velocity(z + step * v, level)
        z = z + step * v
        assert_close(got.at(level), z)
