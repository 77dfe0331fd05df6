from dataclasses import FrozenInstanceError, dataclass, replace

import pytest
import torch

from weft.engine.call import Evaluation
from weft.engine.monitor import SILENT, Recording
from weft.engine.plan import PLAIN, Control, EditPlan, Step
from weft.engine.source import Trajectory
from weft.engine.words import Prompt, Site
from weft.tests.engine.analytic import Gaussian

STEPS = 4


@pytest.fixture
def backbone():
    return Gaussian()


@pytest.fixture
def trajectory(backbone):
    return Trajectory(
        torch.randn(STEPS + 1, 3, 4, 6, 10), backbone.denoiser.schedule(STEPS), backbone.text.embed("a dog"), "paper"
    )


@dataclass(frozen=True)
class Both(Control):
    def attention(self, call, q, k, v, attend):
        return attend(q, k, v)

    def after_step(self, step):
        return step.latents


def test_a_control_acts_only_at_the_seams_it_overrides():
    control = Both()
    seams = ("attention", "feature", "evaluate", "before_step", "after_step")
    assert [s for s in seams if control.acts_at(s)] == ["attention", "after_step"]
    assert not any(Control().acts_at(s) for s in seams)


def test_a_control_that_overrides_nothing_does_nothing(trajectory, backbone):
    control, x = Control(), torch.randn(2, 3)
    step = Step(x, 1, 3, STEPS, trajectory, None, None, backbone, SILENT, 0)
    assert control.attention(None, x, x, x, lambda q, k, v: q + k + v) is not None
    assert torch.equal(control.attention(None, x, x, x, lambda q, k, v: q + k + v), 3 * x)
    assert control.feature("up_blocks.0", x, None) is x
    assert torch.equal(control.evaluate(x, lambda e: e + 1), x + 1)
    assert control.before_step(step) is x
    assert control.after_step(step) is x
    assert control.check(trajectory, backbone) is None


def test_plans_grow_in_order_and_do_not_change(trajectory):
    first, second = Both(), Control()
    plan = PLAIN.then(first)
    longer = plan.then(second)
    assert (len(PLAIN.controls), plan.controls, longer.controls) == (0, (first,), (first, second))
    assert longer.acting_at("attention") == (first,)
    assert longer.acting_at("feature") == ()
    with pytest.raises(FrozenInstanceError):
        plan.controls = ()
    assert EditPlan() == PLAIN


def test_nouns_that_hold_tensors_are_equal_to_themselves_only(trajectory, backbone):
    prompt = backbone.text.embed("a cat")
    for noun in (prompt, trajectory, Evaluation(torch.zeros(1), 1, (prompt,), ("positive",)), Control()):
        copy = replace(noun)
        assert noun == noun
        assert noun != copy
        assert len({noun, copy}) == 2


def test_a_step_knows_its_place_and_the_source(trajectory, backbone):
    z = torch.randn(3, 4, 6, 10, dtype=torch.float64)
    step = Step(z, 2, 1, STEPS, trajectory, None, None, backbone, SILENT, 0)
    assert step.progress == 0.25
    assert torch.equal(step.source_latents(), trajectory.latents[2].double())
    assert torch.equal(step.source_latents(0), trajectory.latents[0].double())


def test_a_call_finds_its_rows():
    site = Site("mid.attn1", "spatial", "mid", 1, 0)
    evaluation = Evaluation(torch.zeros(2, 3, 4, 6, 10), 1, (None, None), ("source", "positive"))
    call = AttentionCall(site, evaluation, (3, 3, 5), 1.0, torch.zeros(2, 3, 15, 8), lambda tokens: (tokens, tokens))
    assert (call.row("source"), call.row("positive")) == (0, 1)
    with pytest.raises(ValueError, match=r"no negative row at mid.attn1: this evaluation has \('source', 'positive'\)"):
        call.row("negative")


@pytest.mark.parametrize("shape", [(4, 3, 4, 6, 10), (6, 3, 4, 6, 10), (5, 4, 6, 10)])
def test_a_trajectory_has_a_latent_for_every_level(trajectory, shape):
    want = rf"of 4 steps wants latents \[5, F, C, h, w\], got \[{', '.join(map(str, shape))}\]"
    with pytest.raises(ValueError, match=want):
        replace(trajectory, latents=torch.zeros(shape))


def test_a_trajectory_states_its_frames_and_its_noise(trajectory):
    assert trajectory.frames == 3
    assert trajectory.noise_std == pytest.approx(trajectory.latents[-1].std().item())


def test_a_trajectory_refuses_another_model(trajectory, backbone):
    trajectory.require(backbone, backbone.text.embed("a cat"))
    backbone.name, backbone.denoiser.fingerprint = "other", "0123"
    with pytest.raises(
        ValueError, match=r"another model than 'other' \(fingerprint gaussian, got 0123\): invert the clip"
    ):
        trajectory.require(backbone)


def test_a_trajectory_refuses_prompts_that_do_not_fit(trajectory, backbone):
    good = backbone.text.embed("a cat")
    with pytest.raises(ValueError, match="'a cat' was encoded by another model than the trajectory's"):
        trajectory.require(backbone, replace(good, model="0123"))
    trajectory.require(backbone, replace(good, embedding=torch.zeros(3, 2, 3)))
    with pytest.raises(ValueError, match="'a cat' has embeddings for 5 frames and the trajectory has 3"):
        trajectory.require(backbone, good, Prompt(torch.zeros(5, 2, 3), "a cat", "gaussian"))


def test_a_recording_keeps_what_it_is_told_in_order():
    monitor = Recording()
    monitor.record(loss=1.0)
    monitor.record(loss=2.0, step=1)
    assert monitor.records == [{"loss": 1.0}, {"loss": 2.0, "step": 1}]


def test_a_thinned_trajectory_keeps_both_ends_and_every_so_many_levels(trajectory):
    got = trajectory.thinned(2)
    assert torch.equal(got.latents, trajectory.latents[[0, 2, 4]])
    assert [got.schedule.label(level) for level in (1, 2)] == [trajectory.schedule.label(level) for level in (2, 4)]
    for kept, level in enumerate((0, 2, 4)):
        assert got.schedule.signal[kept] == trajectory.schedule.signal[level]
        assert got.schedule.noise[kept] == trajectory.schedule.noise[level]
    assert torch.equal(trajectory.thinned(4).latents, trajectory.latents)
    assert (got.prompt, got.convention) == (trajectory.prompt, trajectory.convention)


@pytest.mark.parametrize("steps", [0, 3, 8, -2])
def test_a_trajectory_cannot_be_thinned_unevenly(trajectory, steps):
    with pytest.raises(ValueError, match=f"4 steps cannot be thinned to {steps}: want a number that divides them"):
        trajectory.thinned(steps)
