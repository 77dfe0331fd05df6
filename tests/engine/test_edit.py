from dataclasses import dataclass, field, replace
from typing import ClassVar

import pytest
import torch

from weft.engine.call import Evaluation
from weft.engine.edit import edit
from weft.engine.inversion import invert
from weft.engine.monitor import Monitor
from weft.engine.plan import PLAIN, Control, EditPlan
from weft.tests.engine.analytic import Gaussian
from weft.tests.engine.test_inversion import Listening, Untouched
from weft.tests.engine.test_schedule import PREDICTIONS
from weft.tests.numerics import assert_close
from weft.tests.tiny import make_latents

STEPS = 4


@pytest.fixture(params=PREDICTIONS)
def backbone(request):
    return Gaussian(prediction_type=request.param)


@pytest.fixture
def trajectory(backbone):
    made = invert(backbone, backbone.sample(mean=0.5), backbone.text.embed("a dog"), steps=STEPS)
    backbone.evaluations.clear()
    backbone.on_device.clear()
    return made


def ddim(backbone, trajectory, positive, negative, guidance):
    """The plain edit, written out."""
    schedule, z = trajectory.schedule, trajectory.latents[-1]
    for level in range(STEPS, 0, -1):
        there, away = (
            backbone.denoiser.predict(Evaluation(z[None], schedule.label(level), (p,), ("positive",)))[0]
            for p in (positive, negative)
        )
        z = schedule.step(z, away + guidance * (there - away), level, level - 1)
    return backbone.codec.unscale(z)


@pytest.mark.parametrize("guidance", [0.0, 0.5, 1.0, 7.5])
def test_the_plain_edit_is_ddim_with_classifier_free_guidance(backbone, trajectory, guidance):
    positive, negative = backbone.text.embed("a red cat"), backbone.text.embed("blurry")
    got = edit(backbone, trajectory, positive, negative=negative, guidance=guidance)
    rows = [e.rows for e in backbone.evaluations]
    assert rows == [("positive",) if guidance == 1 else ("negative", "positive")] * STEPS
    assert [e.step for e in backbone.evaluations] == [0, 1, 2, 3]
    assert [e.timestep for e in backbone.evaluations] == list(reversed(trajectory.schedule.timesteps))
    assert backbone.on_device == [("network", len(rows[0]) * 3 * 60)]
    assert_close(got, ddim(backbone, trajectory, positive, negative, guidance))


def test_guidance_moves_away_from_the_sources_prompt_by_default(backbone, trajectory):
    positive = backbone.text.embed("a red cat")
    got = edit(backbone, trajectory, positive, guidance=3.0)
    assert {e.prompts for e in backbone.evaluations} == {(trajectory.prompt, positive)}
    assert torch.equal(got, edit(backbone, trajectory, positive, negative=trajectory.prompt, guidance=3.0))
    assert not torch.equal(
        got, edit(backbone, trajectory, positive, negative=backbone.text.embed("blurry"), guidance=3.0)
    )


def test_the_first_step_starts_at_the_sources_noise_and_nothing_is_changed(backbone, trajectory):
    before = trajectory.latents.clone()
    edit(backbone, trajectory, backbone.text.embed("a cat"))
    assert torch.equal(backbone.evaluations[0].latents[1], trajectory.latents[-1])
    assert torch.equal(trajectory.latents, before)


@dataclass(frozen=True)
class Write(Control):
    """Writes down each time it acts, and changes the latents so that the order matters."""

    name: str
    diary: list
    scale: float = 1.0
    shift: float = 0.0

    def check(self, trajectory, backbone):
        self.diary.append(f"check {self.name}")

    def before_step(self, step):
        self.diary.append(f"before {self.name} {step.index} {step.level}")
        return step.latents * self.scale + self.shift

    def after_step(self, step):
        self.diary.append(f"after {self.name} {step.index} {step.level}")
        return step.latents

    def evaluate(self, evaluation, evaluate):
        self.diary.append(f"enter {self.name}")
        output = evaluate(evaluation)
        self.diary.append(f"leave {self.name}")
        return output


def test_controls_act_in_plan_order_around_every_step(backbone, trajectory):
    diary = []
    first, second = Write("1", diary, scale=2.0), Write("2", diary, shift=1.0)
    edit(backbone, trajectory, backbone.text.embed("a cat"), plan=PLAIN.then(first).then(second))
    assert diary[:10] == [
        "check 1", "check 2", "before 1 0 4", "before 2 0 4", "enter 1", "enter 2", "leave 2", "leave 1",
        "after 1 0 3", "after 2 0 3",
    ]  # fmt: skip
    assert diary[-2:] == ["after 1 3 0", "after 2 3 0"]
    assert_close(backbone.evaluations[0].latents[0], 2 * trajectory.latents[-1] + 1)


@dataclass(frozen=True)
class Replace(Control):
    value: float

    def after_step(self, step):
        return torch.full_like(step.latents, self.value + step.level)


def test_what_comes_after_the_last_step_is_the_result(backbone, trajectory):
    got = edit(backbone, trajectory, backbone.text.embed("a cat"), plan=EditPlan((Replace(1.0), Replace(3.0))))
    assert torch.equal(got, backbone.codec.unscale(torch.full_like(trajectory.latents[0], 3.0)))


@dataclass(frozen=True)
class Beside(Control):
    needs_source: ClassVar[bool] = True
    seen: list = field(default_factory=list)

    def evaluate(self, evaluation, evaluate):
        self.seen.append(evaluation)
        return evaluate(evaluation)


@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_the_source_runs_beside_the_edit_where_a_control_asks_for_it(backbone, trajectory, guidance):
    control, positive = Beside(), backbone.text.embed("a cat")
    got = edit(backbone, trajectory, positive, plan=PLAIN.then(control), guidance=guidance)
    for index, seen in enumerate(control.seen):
        assert seen.rows == (("source", "positive") if guidance == 1 else ("source", "negative", "positive"))
        assert seen.prompts[0] is trajectory.prompt
        assert seen.prompts[-1] is positive
        assert torch.equal(seen.latents[0], trajectory.latents[STEPS - index])
        assert torch.equal(seen.latents[-1], seen.latents[-2]) == (guidance != 1 or index == 0)
    assert len(control.seen) == STEPS
    assert_close(got, edit(backbone, trajectory, positive, guidance=guidance))


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_an_empty_plan_and_idle_controls_give_the_same_bits(tiny, guidance):
    trajectory = invert(tiny, make_latents(), tiny.text.embed("a red square"), steps=2)
    target = tiny.text.embed("a blue cross")
    plain = edit(tiny, trajectory, target, guidance=guidance)
    assert torch.equal(edit(tiny, trajectory, target, guidance=guidance), plain)
    assert torch.equal(edit(tiny, trajectory, target, plan=PLAIN.then(Control()), guidance=guidance), plain)
    assert not torch.equal(edit(tiny, trajectory, trajectory.prompt, guidance=1.0), plain)


def test_progress_shows_the_clean_estimate_and_cancel_is_asked_every_step(backbone, trajectory):
    monitor, positive = Listening(), backbone.text.embed("a cat")
    edit(backbone, trajectory, positive, guidance=1.0, monitor=monitor)
    assert [s[:2] for s in monitor.steps] == [(n, STEPS) for n in range(1, STEPS + 1)]
    assert monitor.checks >= STEPS
    z = trajectory.latents[-1]
    output = backbone.denoiser.predict(backbone.evaluations[0])[0]
    assert_close(monitor.steps[0][2], trajectory.schedule.split(z, output, STEPS)[0])


@dataclass(frozen=True)
class Fail(Control):
    at: int

    def attention(self, call, q, k, v, attend):
        if call.evaluation.step == self.at and call.site.order == 7:
            raise KeyboardInterrupt
        return attend(q, k, v)


@pytest.mark.parametrize(
    ("plan", "monitor"),
    [(PLAIN.then(Fail(1)), Monitor()), (PLAIN.then(Untouched()), Listening(raise_at=2))],
    ids=["inside a control", "between steps"],
)
def test_a_cancelled_edit_leaves_the_model_as_it_was(tiny, plan, monitor):
    trajectory = invert(tiny, make_latents(), tiny.text.embed("a red square"), steps=2)
    target = tiny.text.embed("a blue cross")
    before = edit(tiny, trajectory, target)
    with pytest.raises(KeyboardInterrupt):
        edit(tiny, trajectory, target, plan=plan, monitor=monitor)
    assert torch.equal(edit(tiny, trajectory, target), before)


@dataclass(frozen=True)
class Spoil(Control):
    def after_step(self, step):
        return step.latents / (step.level - 2)


def test_an_edit_that_becomes_nan_or_infinite_stops_at_once(backbone, trajectory):
    with pytest.raises(ValueError, match="edit became NaN or infinite at step 2 of 4: lower the strength"):
        edit(backbone, trajectory, backbone.text.embed("a cat"), plan=PLAIN.then(Spoil()))
    assert len(backbone.evaluations) == 2


@dataclass(frozen=True)
class Refuse(Control):
    def check(self, trajectory, backbone):
        raise ValueError("not with this clip")


def test_what_does_not_belong_together_is_refused_before_anything_runs(backbone, trajectory):
    prompt = backbone.text.embed("a cat")

    def refused(match, *arguments, **options):
        with pytest.raises(ValueError, match=match):
            edit(*arguments, **options)
        assert backbone.evaluations == []

    other = Gaussian()
    other.denoiser.fingerprint = "0123"
    refused(r"\(fingerprint gaussian, got 0123\): invert the clip with this model", other, trajectory, prompt)
    foreign = replace(prompt, model="0123")
    refused("'a cat' was encoded by another model than the trajectory's", backbone, trajectory, foreign)
    refused("'a cat' was encoded by another model", backbone, trajectory, prompt, negative=foreign)
    for guidance in (-1.0, float("nan")):
        match = f"want a guidance scale of 0 or more, got {guidance}"
        refused(match, backbone, trajectory, prompt, guidance=guidance)
    plan = PLAIN.then(Control()).then(Refuse())
    refused("not with this clip", backbone, trajectory, prompt, plan=plan)


def test_a_model_with_one_prompt_for_all_frames_says_so(tiny):
    trajectory = invert(tiny, make_latents(), tiny.text.embed("a red square"), steps=1)
    per_frame = replace(trajectory.prompt, embedding=trajectory.prompt.embedding.expand(3, -1, -1))
    with pytest.raises(ValueError, match="'tiny' takes one prompt for all frames, got 3"):
        edit(tiny, trajectory, per_frame)


def test_evaluations_know_the_run_and_its_monitor(backbone):
    seen = []

    class Watch(Control):
        def evaluate(self, evaluation, evaluate):
            seen.append((evaluation.step, evaluation.steps, evaluation.monitor))
            return evaluate(evaluation)

    monitor, plan = Monitor(), PLAIN.then(Watch())
    trajectory = invert(
        backbone, backbone.sample(), backbone.text.embed("a"), steps=3, convention="paper", plan=plan, monitor=monitor
    )
    assert seen == [(2, 3, monitor), (1, 3, monitor), (0, 3, monitor)]
    seen.clear()
    edit(backbone, trajectory, trajectory.prompt, plan=plan, monitor=monitor)
    assert seen == [(0, 3, monitor), (1, 3, monitor), (2, 3, monitor)]
