"""What is done to a clip: the order in which controls nest, what they want, and which of them cannot act together."""

from dataclasses import FrozenInstanceError, dataclass, replace
from itertools import permutations
from typing import ClassVar

import pytest
import torch

from weft.engine.autograd import is_ordinary
from weft.engine.call import Call, Features, Run, joined_rows
from weft.engine.monitor import SILENT, Recording
from weft.engine.plan import (
    ATTENTION_ORDER,
    EVALUATE_ORDER,
    PLAIN,
    Control,
    EditPlan,
    Needs,
    Region,
    Step,
    attend_with,
    name_of,
    require_mask,
)
from weft.engine.source import Inverted
from weft.engine.words import NEGATIVE, POSITIVE, SOURCE, Site
from weft.tests.engine.analytic import Gaussian

STEPS = 4


@pytest.fixture
def backbone():
    return Gaussian()


@pytest.fixture
def trajectory(backbone):
    schedule, prompt = backbone.denoiser.schedule(STEPS), backbone.text.embed("a dog")
    return Inverted(torch.randn(STEPS + 1, 3, 4, 6, 10), schedule, prompt, "paper", "gaussian")


def a_call(q):
    x = torch.zeros(1, 1, 1, 1, 1)
    return Call(Site("mid", "spatial", "mid", 0, 0), (POSITIVE,), q, x, x, (0,), (1, 1, 1), 1.0, x, x, None, Run())


# ---- seams -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Both(Control):
    def attention(self, call, attend):
        return attend(call)

    def after_step(self, step):
        return step.latents


def test_a_control_acts_only_at_the_seams_it_overrides():
    control = Both()
    seams = ("attention", "feature", "evaluate", "before_step", "after_step")
    assert [s for s in seams if control.acts_at(s)] == ["attention", "after_step"]
    assert not any(Control().acts_at(s) for s in seams)


def test_a_control_that_overrides_nothing_does_nothing_and_wants_nothing(trajectory, backbone):
    control, x = Control(), torch.randn(2, 3)
    step = Step(x, 1, 3, STEPS, trajectory, None, backbone.denoiser, SILENT, 0, {}, None)
    call = a_call(x)
    assert control.attention(call, lambda c: 3 * c.q) is not None
    assert torch.equal(control.attention(call, lambda c: 3 * c.q), 3 * x)
    assert control.feature(Features(None, x, (POSITIVE,), Run())) is x
    assert torch.equal(control.evaluate(x, lambda e: e + 1), x + 1)
    assert control.before_step(step) is x
    assert control.after_step(step) is x
    assert control.check(trajectory, backbone.denoiser, None) is None
    assert control.joined(Control()) is None
    assert control.needs() == Needs(False, False, False, False, False, "own")
    assert control.bytes(backbone.denoiser, 2, 3, (6, 10)) == 0


def test_plans_grow_in_order_and_do_not_change():
    first, second = Both(), Control()
    plan = PLAIN.then(first)
    longer = plan.then(second)
    assert (len(PLAIN.controls), plan.controls, longer.controls) == (0, (first,), (first, second))
    assert longer.acting_at("attention") == (first,)
    assert longer.acting_at("feature") == ()
    with pytest.raises(FrozenInstanceError):
        plan.controls = ()
    assert EditPlan() == PLAIN


# ---- nesting ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Inject(Control):
    slot: ClassVar[str] = "inject"
    number: int = 0

    def attention(self, call, attend):
        return attend(replace(call, q=call.q + [(self.slot, self.number)]))

    def evaluate(self, evaluation, evaluate):
        return evaluate(evaluation)

    def feature(self, features):
        return features.x

    def before_step(self, step):
        return step.latents

    def after_step(self, step):
        return step.latents


class Output(Inject):
    slot = "output"


class Map(Inject):
    slot = "map"


class Keys(Inject):
    slot = "keys"


BY_SLOT = {"inject": Inject, "output": Output, "map": Map, "keys": Keys}


@pytest.mark.parametrize("wired", list(permutations(BY_SLOT)))
def test_controls_nest_by_slot_however_they_are_wired(wired):
    plan = EditPlan(tuple(BY_SLOT[slot]() for slot in wired))
    assert ATTENTION_ORDER == ("inject", "output", "map", "keys")
    assert EVALUATE_ORDER == ("map", "inject", "output", "keys")
    for seam, order in (("attention", ATTENTION_ORDER), ("evaluate", EVALUATE_ORDER)):
        assert tuple(c.slot for c in plan.acting_at(seam)) == order
    for seam in ("feature", "before_step", "after_step"):  # as they are wired
        assert plan.acting_at(seam) == plan.controls


def test_among_equals_wire_order_decides():
    wired = [(Keys, 1), (Map, 2), (Keys, 3), (Inject, 4), (Map, 5), (Inject, 6)]
    plan = EditPlan(tuple(kind(number=number) for kind, number in wired))
    assert [c.number for c in plan.acting_at("attention")] == [4, 6, 2, 5, 1, 3]
    assert [c.number for c in plan.acting_at("evaluate")] == [2, 5, 4, 6, 1, 3]
    # What the softmax itself is given has passed them in this order.
    passed = attend_with(plan.acting_at("attention"), lambda call: call.q)(a_call([]))
    assert [number for _, number in passed] == [4, 6, 2, 5, 1, 3]


@dataclass(frozen=True)
class Affine(Control):
    """Scales the queries on the way in and shifts the result on the way out."""

    scale: float
    shift: float

    def attention(self, call, attend):
        return attend(replace(call, q=self.scale * call.q)) + self.shift


@dataclass(frozen=True)
class Square(Control):
    def attention(self, call, attend):
        return attend(call).square()


def cubed(call):
    return call.q**3 + 1


def test_the_first_control_is_outermost():
    call = a_call(torch.randn(5, dtype=torch.float64))
    first, second = Affine(2.0, 10.0), Affine(3.0, 200.0)
    torch.testing.assert_close(attend_with([first, second], cubed)(call), (6 * call.q) ** 3 + 211)
    square_outside = attend_with([Square(), first], cubed)(call)
    square_inside = attend_with([first, Square()], cubed)(call)
    torch.testing.assert_close(square_outside, ((2 * call.q) ** 3 + 11).square())
    torch.testing.assert_close(square_inside, ((2 * call.q) ** 3 + 1).square() + 10)


def test_without_controls_attention_is_untouched():
    assert attend_with([], cubed) is cubed


def test_rows_are_put_back_in_their_order():
    parts = {row: torch.full((1, 2), float(i)) for i, row in enumerate((POSITIVE, SOURCE, NEGATIVE))}
    assert joined_rows((SOURCE, NEGATIVE, POSITIVE), parts)[:, 0].tolist() == [1, 2, 0]


# ---- two of a kind ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Sum(Control):
    total: int

    def joined(self, other):
        return Sum(self.total + other.total) if isinstance(other, Sum) else None


def test_two_of_a_kind_become_one_in_the_place_of_the_first():
    other, last = Both(), Control()
    plan = PLAIN.then(other).then(Sum(1))
    joined = plan.then(last).then(Sum(20)).then(Sum(300))
    assert (joined.controls[0], joined.controls[2]) == (other, last)
    assert [c.total for c in joined.controls if isinstance(c, Sum)] == [321]
    assert [c.total for c in plan.controls[1:]] == [1]  # the plan on the wire is as it was


# ---- regions ---------------------------------------------------------------------------------------------------------


def test_a_region_runs_under_the_whole_plan_and_its_own_controls(backbone):
    prompt, own = backbone.text.embed("a cat"), Both()
    region = Region(prompt, controls=(own, Sum(20)))
    plan = PLAIN.then(Sum(1)).with_region(region).with_region(Region(prompt))
    assert len(plan.regions) == 2
    of_it = plan.of_region(region)
    assert of_it.regions == ()
    assert [getattr(c, "total", c) for c in of_it.controls] == [21, own]  # joined with that of the plan
    without = plan.of_region(plan.regions[1])
    assert all(a is b for a, b in zip(without.controls, plan.controls, strict=True))
    assert plan.then(own).regions == plan.regions


@pytest.mark.parametrize("strength", [-0.1, 1.1, float("nan")])
def test_a_regions_strength_is_a_share(strength):
    with pytest.raises(ValueError, match=r"want a region's strength in 0\.\.1, got"):
        Region(None, strength=strength)


def test_a_region_takes_masks_that_can_be_used():
    with pytest.raises(ValueError, match=r"the mask must hold numbers in 0\.\.1, got 0 to 255"):
        Region(None, mask=torch.tensor([[[0.0, 255.0]]]))
    assert Region(None, mask=torch.tensor([[[0.0, 1.0005]]])).mask.max() == 1
    assert Region(None).mask is None


# ---- what controls want ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Wants(Control):
    what: Needs = Needs()  # noqa: RUF009  it is frozen
    size: int = 0

    def needs(self):
        return self.what

    def bytes(self, model, rows, frames, size):
        return self.size * rows * frames * size[0] * size[1]


class WantsToo(Wants):
    pass


def plan_of(*needs):
    return EditPlan((Wants(needs[0]), *(WantsToo(n) for n in needs[1:])))


def test_a_plan_wants_what_any_of_its_controls_wants(backbone):
    assert PLAIN.needs == Needs()
    for name in ("source", "all_frames", "picks_frames"):
        assert getattr(plan_of(Needs(), Needs(**{name: True}), Needs()).needs, name)
        others = {"source", "all_frames", "picks_frames"} - {name}
        assert not any(getattr(plan_of(Needs(), Needs(**{name: True})).needs, n) for n in others)
    plan = EditPlan((Wants(size=2), Control(), Wants(size=3)))
    assert plan.bytes(backbone.denoiser, 3, 5, (7, 2)) == 5 * 3 * 5 * 14


def checked(plan, trajectory, backbone):
    plan.check(trajectory, backbone.denoiser, trajectory.prompt)


FITTING = [
    (Needs(), Needs(keys="bank")),
    (Needs(keys="own"), Needs(keys="bases")),
    (Needs(keys="frames"), Needs(keys="frames")),  # what is seen adds up
    (Needs(keys="frames"), Needs(keys="bases")),  # bases stand for all frames
    (Needs(picks_frames=True), Needs(all_frames=True)),
    (Needs(source=True), Needs(source=True)),
]
UNFIT = [
    (Needs(picks_frames=True), Needs(picks_frames=True), "both evaluate some frames on their own, .* keep one of them"),
    (Needs(keys="bank"), Needs(keys="bank"), "one gives all frames the keys of a few, the other gives them other keys"),
    (Needs(keys="bank"), Needs(keys="frames"), "one gives all frames the keys of a few"),
    (Needs(keys="bank"), Needs(keys="bases"), "one gives all frames the keys of a few"),
    (Needs(keys="bases"), Needs(keys="bases"), "each replaces the keys by bases of its own; keep one of them"),
]


@pytest.mark.parametrize(("one", "other"), FITTING)
def test_controls_that_fit_are_let_be(trajectory, backbone, one, other):
    checked(plan_of(one, other), trajectory, backbone)
    checked(plan_of(other, one), trajectory, backbone)


@pytest.mark.parametrize(("one", "other", "why"), UNFIT)
def test_controls_that_cannot_act_together_are_both_named(trajectory, backbone, one, other, why):
    for pair in ((one, other), (other, one)):
        with pytest.raises(ValueError, match=f"Wants and Wants Too cannot act together: .*{why}"):
            checked(plan_of(*pair), trajectory, backbone)
    with pytest.raises(ValueError, match="Wants and Wants Too cannot act together"):
        checked(EditPlan((Control(), Wants(one), Control(), WantsToo(other))), trajectory, backbone)


def test_what_evaluates_single_frames_is_not_for_a_model_whose_frames_see_each_other(trajectory, backbone):
    plan = plan_of(Needs(framewise=True))
    checked(plan, trajectory, backbone)
    backbone.denoiser.framewise = False
    match = "Wants evaluates single frames, and 'gaussian' looks at all frames together: use an image or instruction"
    with pytest.raises(ValueError, match=match):
        checked(plan, trajectory, backbone)


@dataclass(frozen=True, eq=False)
class Checks(Control):
    told: list

    def check(self, trajectory, model, target):
        self.told.append((trajectory, model, target))


def test_every_control_is_told_the_clip_the_model_and_what_it_is_to_show(trajectory, backbone):
    told, target = [], backbone.text.embed("a cat")
    EditPlan((Checks(told), Control(), Checks(told))).check(trajectory, backbone.denoiser, target)
    assert told == [(trajectory, backbone.denoiser, target)] * 2


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("CorrespondenceAttention", "Correspondence Attention"),
        ("STRLatentOptimizer", "STR Latent Optimizer"),
        ("STEMAttention", "STEM Attention"),
        ("TokenFlow", "Token Flow"),
        ("SpatioTemporalAttention", "Spatio Temporal Attention"),
        ("VIA", "VIA"),
    ],
)
def test_controls_are_named_as_users_know_them(kind, name):
    assert name_of(type(kind, (Control,), {})()) == name
    assert name_of(type(kind, (Control,), {"title": "As Its Node"})()) == "As Its Node"


# ---- masks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 5, 7), (3, 5, 7)])
def test_a_mask_that_can_be_used_is_used_as_it_is(shape):
    mask = torch.rand(shape)
    assert torch.equal(require_mask(mask), mask)


def test_what_resizing_leaves_outside_is_brought_back():
    mask = torch.tensor([[[-0.0009, 0.5, 1.0009]]])
    assert require_mask(mask).tolist() == [[[0, 0.5, 1]]]
    assert mask.min() < 0  # that of the wire is as it was


def test_a_mask_of_comfyui_is_copied_out_of_inference_mode():
    with torch.inference_mode():
        mask = torch.ones(1, 2, 3)
        got = require_mask(mask)
    assert is_ordinary(got)


@pytest.mark.parametrize(
    ("mask", "match"),
    [
        (torch.ones(6, 10), r"want a mask \[F, H, W\], or \[1, H, W\] for all frames, got \[6, 10\]"),
        (torch.ones(3, 1, 6, 10), r"want a mask \[F, H, W\], .* got \[3, 1, 6, 10\]"),
        (torch.ones(0, 6, 10), r"want a mask \[F, H, W\], .* got \[0, 6, 10\]"),
        (torch.tensor([[[0.0, float("nan")]]]), r"the mask must hold numbers in 0\.\.1"),
        (torch.tensor([[[0.0, float("inf")]]]), r"the mask must hold numbers in 0\.\.1, got 0 to inf"),
        (torch.tensor([[[0.0, 255.0]]]), r"the mask must hold numbers in 0\.\.1, got 0 to 255"),
        (torch.tensor([[[-0.5, 0.0]]]), r"the mask must hold numbers in 0\.\.1, got -0\.5 to 0"),
        (torch.tensor([[[0.0, 1.002]]]), r"the mask must hold numbers in 0\.\.1, got 0 to 1\.002"),
    ],
)
def test_a_mask_that_cannot_be_used_is_refused(mask, match):
    with pytest.raises(ValueError, match=match):
        require_mask(mask)


# ---- steps and monitors ----------------------------------------------------------------------------------------------


def test_a_step_knows_its_place_and_the_source(trajectory, backbone):
    z = torch.randn(3, 4, 6, 10, dtype=torch.float64)
    step = Step(z, 2, 1, STEPS, trajectory, None, backbone.denoiser, SILENT, 0, {}, None)
    assert step.progress == 0.25
    assert torch.equal(step.source_latents(), trajectory.at(2).double())
    assert torch.equal(step.source_latents(0), trajectory.at(0).double())


def test_a_recording_keeps_what_it_is_told_in_order():
    monitor = Recording()
    monitor.record(loss=1.0)
    monitor.record(loss=2.0, step=1)
    monitor.record(loss=torch.tensor(3.0))  # still on its way from a GPU, perhaps
    assert monitor.records == [{"loss": 1.0}, {"loss": 2.0, "step": 1}, {"loss": 3.0}]
    assert isinstance(monitor.records[2]["loss"], float)
