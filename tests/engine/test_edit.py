from dataclasses import dataclass, field, replace

import pytest
import torch

from weft.backbones.diffusers.text import prompt_of
from weft.engine.call import Evaluation
from weft.engine.edit import edit
from weft.engine.inversion import invert
from weft.engine.monitor import Monitor
from weft.engine.plan import PLAIN, Control, EditPlan, Needs
from weft.engine.solver import DDIM
from weft.engine.source import Noised
from weft.engine.words import NEGATIVE, POSITIVE, SOURCE, SOURCE_NEGATIVE
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
    backbone.reserved.clear()
    backbone.denoiser.prompts.clear()
    return made


def ddim(backbone, trajectory, positive, negative, guidance):
    """The plain edit, written out."""
    schedule, z = trajectory.schedule, trajectory.latents[-1]
    for level in range(STEPS, 0, -1):
        there, away = (
            backbone.denoiser.predict(Evaluation(z[None], schedule.label(level), (p,), (POSITIVE,)))[0]
            for p in (positive, negative)
        )
        z = schedule.step(z, away + guidance * (there - away), level, level - 1)
    return backbone.codec.unscale(z)


@pytest.mark.parametrize("guidance", [0.0, 0.5, 1.0, 7.5])
def test_the_plain_edit_is_ddim_with_classifier_free_guidance(backbone, trajectory, guidance):
    positive, negative = backbone.text.embed("a red cat"), backbone.text.embed("blurry")
    got = edit(backbone, trajectory, positive, negative=negative, guidance=guidance)
    rows = [e.rows for e in backbone.evaluations]
    assert rows == [(POSITIVE,) if guidance == 1 else (NEGATIVE, POSITIVE)] * STEPS
    assert [e.run.step for e in backbone.evaluations] == [0, 1, 2, 3]
    assert [e.label for e in backbone.evaluations] == list(reversed(trajectory.schedule.timesteps))
    assert backbone.reserved == [len(rows[0]) * 3 * 60]
    assert backbone.denoiser.prompts == [(trajectory.prompt, negative, positive)]
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

    def check(self, trajectory, model, target):
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
    seen: list = field(default_factory=list)

    def needs(self):
        return Needs(source=True)

    def evaluate(self, evaluation, evaluate):
        self.seen.append(evaluation)
        return evaluate(evaluation)


@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_the_source_runs_beside_the_edit_where_a_control_asks_for_it(backbone, trajectory, guidance):
    control, positive = Beside(), backbone.text.embed("a cat")
    got = edit(backbone, trajectory, positive, plan=PLAIN.then(control), guidance=guidance)
    for index, seen in enumerate(control.seen):
        assert seen.rows == ((SOURCE, POSITIVE) if guidance == 1 else (SOURCE, NEGATIVE, POSITIVE))
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

    def attention(self, call, attend):
        if call.run.step == self.at and call.site.order == 7:
            raise KeyboardInterrupt
        return attend(call)


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
    def check(self, trajectory, model, target):
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
    foreign = replace(prompt, encoder="0123")
    refused("'a cat' was encoded by another model than 'gaussian'", backbone, trajectory, foreign)
    refused("'a cat' was encoded by another model", backbone, trajectory, prompt, negative=foreign)
    for guidance in (-1.0, float("nan")):
        match = f"want a guidance scale of 0 or more, got {guidance}"
        refused(match, backbone, trajectory, prompt, guidance=guidance)
    plan = PLAIN.then(Control()).then(Refuse())
    refused("not with this clip", backbone, trajectory, prompt, plan=plan)


def test_a_model_with_one_prompt_for_all_frames_says_so(tiny):
    trajectory = invert(tiny, make_latents(), tiny.text.embed("a red square"), steps=1)
    per_frame = prompt_of(trajectory.prompt.cond["embedding"].expand(3, -1, -1), "a", trajectory.prompt.encoder)
    with pytest.raises(ValueError, match="'tiny' takes one prompt for all frames, got 3"):
        edit(tiny, trajectory, per_frame)


def test_evaluations_know_the_run_and_its_monitor(backbone):
    seen = []

    class Watch(Control):
        def evaluate(self, evaluation, evaluate):
            seen.append((evaluation.run.step, evaluation.run.steps, evaluation.run.monitor))
            return evaluate(evaluation)

    monitor, plan = Monitor(), PLAIN.then(Watch())
    trajectory = invert(
        backbone, backbone.sample(), backbone.text.embed("a"), steps=3, convention="paper", plan=plan, monitor=monitor
    )
    assert seen == [(2, 3, monitor), (1, 3, monitor), (0, 3, monitor)]
    seen.clear()
    edit(backbone, trajectory, trajectory.prompt, plan=plan, monitor=monitor)
    assert seen == [(0, 3, monitor), (1, 3, monitor), (2, 3, monitor)]


# ---- what is kept for a run, and looks into the network ------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Keeps(Control):
    """Counts in what is kept for the run, where a step and where an evaluation find it."""

    counts: list = field(default_factory=list)

    def before_step(self, step):
        step.kept[self] = step.kept.get(self, 0) + 1
        return step.latents

    def evaluate(self, evaluation, evaluate):
        self.counts.append(evaluation.run.kept[self])
        return evaluate(evaluation)


def test_what_a_control_keeps_lasts_for_the_run_and_no_longer(backbone, trajectory):
    control, positive = Keeps(), backbone.text.embed("a cat")
    for _ in range(2):
        edit(backbone, trajectory, positive, plan=PLAIN.then(control))
    assert control.counts == [1, 2, 3, 4] * 2


@dataclass(frozen=True, eq=False)
class Reads(Control):
    """Looks, in every step, at what a layer projects for the edit and for the source."""

    layer: str
    source: bool
    seen: list = field(default_factory=list)

    def needs(self):
        return Needs(source=self.source)

    def before_step(self, step):
        of_source = step.read(None, step.source_latents(), frozenset([self.layer]))[self.layer]
        of_edit = step.read(step.latents, step.source_latents(), frozenset([self.layer]))[self.layer]
        self.seen.append((step, of_source, of_edit))
        return step.latents


@dataclass(frozen=True, eq=False)
class Doubled(Control):
    """Doubles the queries of all layers."""

    def attention(self, call, attend):
        return attend(replace(call, q=2 * call.q))


@pytest.mark.parametrize("source", [False, True])
def test_a_step_may_look_at_what_its_evaluation_will_project(tiny64, source):
    trajectory = invert(tiny64, make_latents(), tiny64.text.embed("a red square"), steps=2)
    layer, positive = tiny64.denoiser.sites[-1].layer, tiny64.text.embed("a blue cross")
    reads, watch = Reads(layer, source), Watch(layer)
    edit(tiny64, trajectory, positive, plan=PLAIN.then(watch).then(Doubled()).then(reads), guidance=3.0)
    assert len(reads.seen) == 2
    for index, (step, of_source, of_edit) in enumerate(reads.seen):
        (call,) = [c for c in watch.calls if c.run.step == index and NEGATIVE in c.rows]
        assert (of_source.rows, of_edit.rows) == ((SOURCE,), (POSITIVE,))
        assert_close(of_edit.q, call.only(POSITIVE).q)  # as the plan has it: layers before this one were doubled
        if source:
            assert_close(of_source.k, call.source.k)
            assert_close(of_edit.source.k, call.source.k)
        else:
            assert of_edit.beside is None
        assert step.positive is positive


@dataclass(frozen=True, eq=False)
class Watch(Control):
    layer: str
    calls: list = field(default_factory=list)

    def attention(self, call, attend):
        if call.site.layer == self.layer:
            self.calls.append(call)
        return attend(call)


# ---- solvers -----------------------------------------------------------------------------------------------------


def test_ddim_is_the_default_and_starts_from_the_sources_noise(backbone, trajectory):
    positive = backbone.text.embed("a cat")
    assert torch.equal(edit(backbone, trajectory, positive, solver=DDIM()), edit(backbone, trajectory, positive))
    solver = DDIM()
    assert list(solver.levels(trajectory.schedule)) == [4, 3, 2, 1]
    assert [solver.after(level) for level in (4, 1)] == [3, 0]
    assert torch.equal(solver.begin(trajectory), trajectory.at(4))
    z = torch.randn(3, 4, 6, 10)
    assert solver.look(z, trajectory, 3, 0, 5) == (trajectory, z)


@dataclass(frozen=True, eq=False)
class Twice:
    """A solver that looks twice, from noise of its own, on every other level, and takes the mean of what it saw."""

    source_guidance: float | None = None
    told: list = field(default_factory=list)
    draws: int = 2

    def check(self, source, model):
        self.told.append(("check", source, model))

    def levels(self, schedule):
        return range(schedule.steps, 0, -2)

    def begin(self, source):
        return source.at(0)

    def look(self, z, source, level, draw, seed):
        eps = torch.full_like(z, draw + seed)
        noised = Noised(source.at(0), eps, source.schedule, source.prompt)
        return noised, z + draw

    def advance(self, z, source, level, seen, cover):
        self.told.append((level, z, seen, cover))
        return sum(one.guided for one in seen) / len(seen)

    def after(self, level):
        return level - 2


@pytest.mark.parametrize("source_guidance", [None, 1.0, 2.5])
def test_a_solver_says_what_is_evaluated_and_is_told_what_came_of_it(backbone, trajectory, source_guidance):
    solver, monitor, steps = Twice(source_guidance), Listening(), []
    positive, negative = backbone.text.embed("a red cat"), backbone.text.embed("blurry")

    @dataclass(frozen=True, eq=False)
    class Steps(Control):
        def before_step(self, step):
            steps.append((step.index, step.steps, step.level, step.trajectory))
            return step.latents

        def after_step(self, step):
            steps.append((step.index, step.steps, step.level, step.trajectory))
            return step.latents

    backbone.evaluations.clear()
    got = edit(
        backbone, trajectory, positive, negative=negative, plan=PLAIN.then(Steps()), solver=solver, guidance=3.0,
        seed=7, monitor=monitor,
    )  # fmt: skip
    assert solver.told[0] == ("check", trajectory, backbone.denoiser)
    assert [told[0] for told in solver.told[1:]] == [4, 2]
    rows = {None: (NEGATIVE, POSITIVE), 1.0: (SOURCE, NEGATIVE, POSITIVE)}
    rows = rows.get(source_guidance, (SOURCE, SOURCE_NEGATIVE, NEGATIVE, POSITIVE))
    assert [e.rows for e in backbone.evaluations] == [rows] * 4
    assert [(e.run.step, e.run.steps) for e in backbone.evaluations] == [(0, 2), (0, 2), (1, 2), (1, 2)]
    assert [s[:2] for s in monitor.steps] == [(1, 2), (2, 2)]

    z, evaluations = trajectory.at(0), list(backbone.evaluations)
    for level, before, seen, cover in solver.told[1:]:
        assert_close(before, z)
        assert cover is None
        means = []
        for draw, one in enumerate(seen):
            e = evaluations.pop(0)
            noised = one.source.at(level)
            assert_close(noised, trajectory.schedule.noised(trajectory.at(0), torch.tensor(7.0 + draw), level))
            assert_close(one.latents, z + draw)
            there = dict(zip(rows, zip(e.latents, e.prompts, backbone.denoiser.predict(e))))
            assert there[POSITIVE][1] is positive
            assert there[NEGATIVE][1] is negative
            assert_close(there[NEGATIVE][0], one.latents)
            guided = there[NEGATIVE][2] + 3 * (there[POSITIVE][2] - there[NEGATIVE][2])
            assert_close(one.guided, guided)
            means.append(guided)
            if source_guidance is None:
                assert one.source_output is None
                continue
            assert_close(there[SOURCE][0], noised)
            assert there[SOURCE][1] is trajectory.prompt
            own = there[SOURCE][2]
            if source_guidance != 1:
                assert there[SOURCE_NEGATIVE][1] is negative
                away = there[SOURCE_NEGATIVE][2]
                own = away + source_guidance * (own - away)
            assert_close(one.source_output, own)
        z = sum(means) / 2
    assert_close(got, backbone.codec.unscale(z))
    first, last = steps[0], steps[-1]
    assert first[:3] == (0, 2, 4)
    assert isinstance(first[3], Noised)  # before a step the source is in the noise of its draw
    assert last == (1, 2, 0, trajectory)


def test_what_a_solver_cannot_solve_is_refused_before_anything_runs(backbone, trajectory):
    class Never(Twice):
        def check(self, source, model):
            raise ValueError("not from here")

    backbone.evaluations.clear()
    with pytest.raises(ValueError, match="not from here"):
        edit(backbone, trajectory, trajectory.prompt, solver=Never())
    assert backbone.evaluations == []


def test_an_edit_may_take_fewer_steps_than_its_inversion(backbone, trajectory):
    positive = backbone.text.embed("a red cat")
    got = edit(backbone, trajectory.thinned(2), positive, guidance=1.0)
    schedule, z = trajectory.schedule, trajectory.at(4)
    for level in (4, 2):
        output = backbone.denoiser.predict(Evaluation(z[None], schedule.label(level), (positive,), (POSITIVE,)))[0]
        z = schedule.step(z, output, level, level - 2)
    assert_close(got, backbone.codec.unscale(z))
