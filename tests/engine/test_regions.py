"""Regions: each is edited by its own prompts, inside its own mask, and what no region covers is the source.

The Gaussian's cells do not see each other, so in a region's cells the edit is the plain edit by its prompt.
"""

from dataclasses import dataclass, field, replace
from itertools import permutations

import pytest
import torch

from weft.backbones.diffusers.text import prompt_of
from weft.engine.call import Evaluation
from weft.engine.edit import edit
from weft.engine.inversion import invert
from weft.engine.plan import PLAIN, Control, EditPlan, Needs, Region
from weft.engine.regions import parts_of, role_rows
from weft.engine.words import NEGATIVE, POSITIVE, SOURCE, UNCONDITIONAL, Layout, Row
from weft.tests.engine.analytic import Gaussian
from weft.tests.numerics import assert_close
from weft.tests.tiny import make_latents

STEPS, SIZE = 3, (6, 10)


@pytest.fixture
def backbone():
    return Gaussian()


@pytest.fixture
def trajectory(backbone):
    made = invert(backbone, backbone.sample(mean=0.5), backbone.text.embed("a dog"), steps=STEPS)
    backbone.evaluations.clear()
    backbone.reserved.clear()
    return made


def box(top, left, bottom, right, frames=1, scale=1):
    mask = torch.zeros(frames, SIZE[0] * scale, SIZE[1] * scale)
    mask[:, top * scale : bottom * scale, left * scale : right * scale] = 1
    return mask


LEFT, RIGHT = box(0, 0, 6, 4), box(0, 6, 6, 10)
OVERLAPPING = box(0, 2, 4, 7)


def of(*regions):
    return EditPlan(regions=regions)


def parts(regions, trajectory, backbone, guidance=3.0, image_guidance=1.0, plan=PLAIN):
    plan = replace(plan, regions=tuple(regions))
    positive, negative = backbone.text.embed("whole"), trajectory.prompt
    layout = backbone.denoiser.layout
    return parts_of(plan, trajectory, layout, positive, negative, guidance, image_guidance)


def a(text, backbone=None):
    return (backbone or Gaussian()).text.embed(text)


# ---- how far each cell is edited -----------------------------------------------------------------------------------


def test_without_regions_the_whole_picture_is_one_with_the_samplers_prompts(backbone, trajectory):
    (part,) = found = parts((), trajectory, backbone)
    assert (part.index, part.positive.text, part.negative, part.weight) == (0, "whole", trajectory.prompt, None)
    assert (found.total, found.cover) == (None, None)
    (part,) = parts([Region(a("a cat"))], trajectory, backbone)  # one region without a mask is the whole picture too
    assert (part.positive.text, part.weight) == ("a cat", None)


def test_weights_are_masks_in_latent_cells_times_strength(backbone, trajectory):
    backbone.denoiser.layout = Layout(2)
    masks = box(0, 0, 6, 4, scale=2), box(1, 5, 3, 10, frames=3, scale=2)
    masks[1][2] = 0
    one, other = found = parts(
        [Region(a("a cat"), mask=masks[0]), Region(a("a cow"), mask=masks[1], strength=0.25)], trajectory, backbone
    )
    assert torch.equal(one.weight, box(0, 0, 6, 4)[:, None])
    want = box(1, 5, 3, 10, frames=3)[:, None]
    want[2] = 0
    assert torch.equal(other.weight, 0.25 * want)
    assert torch.equal(found.total, one.weight + other.weight)


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_the_region_without_a_mask_gets_what_the_others_leave(backbone, trajectory, order):
    regions = [Region(a("l"), mask=LEFT), Region(a("o"), mask=OVERLAPPING, strength=0.5), Region(a("rest"))]
    found = parts([regions[i] for i in order], trajectory, backbone)
    weights = {part.positive.text: part.weight for part in found}
    covered = (LEFT + OVERLAPPING).clamp(max=1)[:, None]
    assert torch.equal(weights["rest"], 1 - covered)  # by masks, however weak what they edit is
    assert found.total.min() == 0.5
    assert found.total.max() == 1.5
    assert torch.equal(found.cover, (weights["l"] + weights["o"] + weights["rest"]).clamp(max=1))


@pytest.mark.parametrize("strength", [0.0, 0.3])
def test_one_region_of_less_strength_covers_the_picture_so_far(backbone, trajectory, strength):
    (part,) = found = parts([Region(a("a cat"), strength=strength)], trajectory, backbone)
    assert_close(part.weight, torch.full((1, 1, *SIZE), strength))
    assert_close(found.cover, part.weight)


@pytest.mark.parametrize(
    ("regions", "match"),
    [
        ([None, None], "2 regions have no mask, and only one can be all that the others leave: give the others masks"),
        ([LEFT, None, None, None], "3 regions have no mask"),
        ([torch.ones(2, *SIZE)], "the mask has 2 frames and the clip 3"),
        ([LEFT, torch.ones(1, 10, 6)], "the mask is 6x10 pixels and the clip 10x6"),
    ],
)
def test_regions_that_do_not_fit_are_refused_before_anything_runs(backbone, trajectory, regions, match):
    plan = of(*(Region(a("a cat"), mask=mask) for mask in regions))
    with pytest.raises(ValueError, match=match):
        edit(backbone, trajectory, trajectory.prompt, plan=plan)
    assert backbone.evaluations == []


def test_prompts_of_a_region_must_be_of_this_model(backbone, trajectory):
    for change in (
        {"positive": replace(a("a cat"), encoder="0123")},
        {"negative": replace(a("a cat"), encoder="0123")},
    ):
        region = replace(Region(a("a cow"), mask=LEFT), **change)
        with pytest.raises(ValueError, match="'a cat' was encoded by another model than 'gaussian'"):
            edit(backbone, trajectory, trajectory.prompt, plan=of(region))
    assert backbone.evaluations == []


# ---- the edit ------------------------------------------------------------------------------------------------------


def test_in_each_region_the_edit_is_its_own_and_elsewhere_the_clip_is_the_source(backbone, trajectory):
    cat, cow, dull = a("a red cat"), a("a cow"), a("blurry and dull")
    got = edit(
        backbone, trajectory, a("not used"), negative=a("a"), guidance=3.0,
        plan=of(Region(cat, mask=LEFT), Region(cow, dull, RIGHT)),
    )  # fmt: skip
    left, right = (
        edit(backbone, trajectory, cat, negative=a("a"), guidance=3.0),
        edit(backbone, trajectory, cow, negative=dull, guidance=3.0),
    )
    source = backbone.codec.unscale(trajectory.at(0))
    assert_close(got, torch.where(LEFT > 0, left, torch.where(RIGHT > 0, right, source)))
    assert torch.equal(got[..., 4:6], source[..., 4:6])  # to the bit


def test_the_rest_of_the_picture_may_have_an_edit_of_its_own(backbone, trajectory):
    cat, cow = a("a red cat"), a("a cow")
    got = edit(backbone, trajectory, cow, plan=of(Region(cat, mask=LEFT), Region(cow)))
    want = torch.where(LEFT > 0, edit(backbone, trajectory, cat), edit(backbone, trajectory, cow))
    assert_close(got, want)


def test_one_region_that_is_all_of_the_picture_is_the_plain_edit_bit_for_bit(backbone, trajectory):
    cat = a("a red cat")
    plain = edit(backbone, trajectory, cat)
    assert torch.equal(edit(backbone, trajectory, a("not used"), plan=of(Region(cat))), plain)
    assert torch.equal(edit(backbone, trajectory, cat, plan=of(Region(cat, mask=torch.ones(1, *SIZE)))), plain)


def by_hand(backbone, trajectory, regions, guidance):
    """The edit of regions as it is meant, cell by cell, for regions with masks."""
    schedule, z = trajectory.schedule, trajectory.at(STEPS)
    for level in range(STEPS, 0, -1):

        def predict(prompt, z=z, level=level):
            return backbone.denoiser.predict(Evaluation(z[None], schedule.label(level), (prompt,), (POSITIVE,)))[0]

        weights = [region.strength * region.mask[:, None] for region in regions]
        total, mixed = sum(weights), 0
        for region, weight in zip(regions, weights):
            negative = predict(region.negative or trajectory.prompt)
            guided = negative + guidance * (predict(region.positive) - negative)
            mixed = mixed + torch.where(total > 0, weight / total.clamp(min=1e-6), torch.zeros(())) * guided
        moved = schedule.step(z, mixed, level, level - 1)
        share = total.clamp(max=1)
        z = (1 - share) * trajectory.at(level - 1) + share * moved
    return backbone.codec.unscale(z)


@pytest.mark.parametrize("strengths", [(1.0, 1.0), (0.7, 0.2), (1.0, 0.0), (0.5, 1.0)])
def test_regions_that_overlap_share_their_cells_by_strength(backbone, trajectory, strengths):
    first, second = strengths
    regions = [
        Region(a("a red cat"), mask=LEFT, strength=first),
        Region(a("a cow"), a("dull"), OVERLAPPING.expand(3, -1, -1), strength=second),
    ]
    got = edit(backbone, trajectory, a("not used"), plan=of(*regions), guidance=3.0)
    assert_close(got, by_hand(backbone, trajectory, regions, 3.0))


def test_a_region_of_strength_zero_is_the_source(backbone, trajectory):
    got = edit(backbone, trajectory, a("x"), plan=of(Region(a("a red cat"), strength=0.0)), guidance=3.0)
    assert_close(got, backbone.codec.unscale(trajectory.at(0)))


def test_a_region_may_be_elsewhere_in_every_frame(backbone, trajectory):
    mask = torch.cat([LEFT, RIGHT, torch.zeros(1, *SIZE)])
    cat = a("a red cat")
    got, plain = edit(backbone, trajectory, cat, plan=of(Region(cat, mask=mask))), edit(backbone, trajectory, cat)
    source = backbone.codec.unscale(trajectory.at(0))
    assert_close(got, torch.where(mask[:, None] > 0, plain, source))


# ---- what is evaluated ---------------------------------------------------------------------------------------------


def test_guidance_at_one_has_no_negative():
    assert role_rows(1.0, 1.0) == ("positive",)
    assert role_rows(7.5, 1.0) == ("negative", "positive")
    assert role_rows(7.5, 1.5) == role_rows(1.0, 1.5) == ("unconditional", "negative", "positive")


def test_a_negative_that_regions_share_is_evaluated_once(backbone, trajectory):
    plan = of(*(Region(a(text), mask=mask) for text, mask in (("a", LEFT), ("bb", RIGHT), ("ccc", OVERLAPPING))))
    edit(backbone, trajectory, a("x"), plan=plan, guidance=3.0)
    rows = (NEGATIVE, POSITIVE, Row("positive", 1), Row("positive", 2))
    assert [e.rows for e in backbone.evaluations] == [rows] * STEPS
    assert [p.text for p in backbone.evaluations[0].prompts] == ["a dog", "a", "bb", "ccc"]
    assert backbone.reserved == [4 * 3 * 60]


def test_negatives_that_differ_are_each_evaluated_and_the_same_text_is_no_other(backbone, trajectory):
    one, again, other = a("dull"), a("dull"), a("blurry")
    regions = [Region(a("a"), one, LEFT), Region(a("bb"), other, RIGHT), Region(a("ccc"), again, OVERLAPPING)]
    got = edit(backbone, trajectory, a("x"), plan=of(*regions), guidance=3.0)
    rows = (NEGATIVE, POSITIVE, Row("negative", 1), Row("positive", 1), Row("positive", 2))
    assert [e.rows for e in backbone.evaluations] == [rows] * STEPS
    assert_close(got, by_hand(backbone, trajectory, regions, 3.0))


def test_the_same_text_of_another_embedding_is_another_prompt(backbone, trajectory):
    """ComfyUI's own nodes average and scale conditionings, and what we write beside them stays as it was."""
    encoder = backbone.text.fingerprint
    one, other = (prompt_of(torch.full((1, 2, 3), value), "dull", encoder) for value in (0.1, 0.9))
    regions = [Region(a("a"), one, LEFT), Region(a("bb"), other, RIGHT)]
    got = edit(backbone, trajectory, a("x"), plan=of(*regions), guidance=3.0)
    assert_close(got, by_hand(backbone, trajectory, regions, 3.0))


def test_prompts_of_each_frame_are_no_twins(backbone, trajectory):
    encoder = backbone.text.fingerprint
    one, other = (prompt_of(torch.full((3, 2, 3), value), "dull", encoder) for value in (0.1, 0.9))
    regions = [Region(a("a"), one, LEFT), Region(a("bb"), other, RIGHT)]
    edit(backbone, trajectory, a("x"), plan=of(*regions), guidance=3.0)
    assert backbone.evaluations[0].rows == (NEGATIVE, POSITIVE, Row("negative", 1), Row("positive", 1))


def test_regions_of_one_positive_are_still_two(backbone, trajectory):
    """A control may do something else in each row."""
    cat = a("a cat")
    edit(backbone, trajectory, cat, plan=of(Region(cat, mask=LEFT), Region(cat, mask=RIGHT)), guidance=1.0)
    assert backbone.evaluations[0].rows == (POSITIVE, Row("positive", 1))


def test_an_instruction_models_unconditional_row_is_shared_too(tiny_instruct64):
    backbone = tiny_instruct64
    trajectory = invert(backbone, make_latents(3, SIZE), backbone.text.embed(""), steps=2)
    watch, texts = Watch(), ("turn it into a blue cross", "turn it into a circle")
    cross, circle = map(backbone.text.embed, texts)
    left, right = box(0, 0, 6, 4, scale=2), box(0, 6, 6, 10, scale=2)
    plan = EditPlan((watch,), (Region(cross, mask=left), Region(circle, mask=right)))
    got = edit(backbone, trajectory, cross, plan=plan, guidance=3.0, image_guidance=1.5)
    assert watch.seen[0].rows == (UNCONDITIONAL, NEGATIVE, POSITIVE, Row("positive", 1))
    # One after the other, with the mask's plain formula between the steps.
    schedule, z = trajectory.schedule, trajectory.at(2)
    for level in (2, 1):

        def predict(prompt, row, z=z, level=level):
            e = Evaluation(z[None], schedule.label(level), (prompt,), (row,), image=trajectory.at(0))
            with torch.no_grad():
                return backbone.denoiser.predict(e)[0]

        none, pictured = (predict(trajectory.prompt, row) for row in (UNCONDITIONAL, NEGATIVE))
        each = [none + 1.5 * (pictured - none) + 3 * (predict(p, POSITIVE) - pictured) for p in (cross, circle)]
        mixed = LEFT * each[0] + RIGHT * each[1]
        moved = schedule.step(z, mixed, level, level - 1)
        z = torch.where(LEFT + RIGHT > 0, moved, trajectory.at(level - 1))
    assert_close(got, backbone.codec.unscale(z))


# ---- controls ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Watch(Control):
    seen: list = field(default_factory=list)
    source: bool = False

    def needs(self):
        return Needs(source=self.source)

    def evaluate(self, evaluation, evaluate):
        self.seen.append(evaluation)
        return evaluate(evaluation)


@dataclass(frozen=True, eq=False)
class Shift(Control):
    before: float = 0.0
    after: float = 0.0

    def before_step(self, step):
        return step.latents + self.before

    def after_step(self, step):
        return step.latents + self.after


def test_controls_of_one_region_see_its_rows_alone_and_those_of_the_plan_see_all(backbone, trajectory):
    everywhere, own = Watch(), Watch(source=True)
    regions = Region(a("a"), mask=LEFT), Region(a("bb"), mask=RIGHT, controls=(own,)), Region(a("ccc"))
    edit(backbone, trajectory, a("x"), plan=EditPlan((everywhere,), regions), guidance=3.0)
    first = NEGATIVE, POSITIVE, Row("positive", 2)  # regions under one and the same plan are evaluated together
    second = SOURCE, Row("negative", 1), Row("positive", 1)
    assert [e.rows for e in everywhere.seen] == [first, second] * STEPS
    assert [e.rows for e in own.seen] == [second] * STEPS
    assert [e.run.step for e in own.seen] == list(range(STEPS))
    assert torch.equal(own.seen[1].latents[0], trajectory.at(STEPS - 1))


def test_controls_around_a_step_act_inside_their_region(backbone, trajectory):
    cat, shift = a("a red cat"), Shift(before=0.3, after=0.1)
    got = edit(backbone, trajectory, cat, plan=of(Region(cat, mask=LEFT, controls=(shift,)), Region(cat, mask=RIGHT)))
    shifted, plain = edit(backbone, trajectory, cat, plan=PLAIN.then(shift)), edit(backbone, trajectory, cat)
    source = backbone.codec.unscale(trajectory.at(0))
    assert_close(got, torch.where(LEFT > 0, shifted, torch.where(RIGHT > 0, plain, source)))


def test_a_control_of_the_whole_plan_acts_once_in_every_cell_that_is_edited(backbone, trajectory):
    cat, cow, shift = a("a red cat"), a("a cow"), Shift(before=0.3, after=0.1)
    regions = Region(cat, mask=LEFT), Region(cow, mask=RIGHT)
    got = edit(backbone, trajectory, cat, plan=EditPlan((shift,), regions))
    left, right = (edit(backbone, trajectory, p, plan=PLAIN.then(shift)) for p in (cat, cow))
    source = backbone.codec.unscale(trajectory.at(0))
    assert_close(got, torch.where(LEFT > 0, left, torch.where(RIGHT > 0, right, source)))


def test_a_control_of_the_whole_plan_acts_once_where_regions_overlap(backbone, trajectory):
    """Or an edit would move the faster there the more regions meet."""
    cat, shift = a("a red cat"), Shift(after=0.1)
    regions = Region(cat, mask=LEFT), Region(cat, mask=OVERLAPPING)
    got = edit(backbone, trajectory, cat, plan=EditPlan((shift,), regions))
    shifted, source = edit(backbone, trajectory, cat, plan=PLAIN.then(shift)), backbone.codec.unscale(trajectory.at(0))
    assert_close(got, torch.where(LEFT + OVERLAPPING > 0, shifted, source))


@dataclass(frozen=True, eq=False)
class Refuse(Control):
    def check(self, trajectory, model, target):
        raise ValueError(f"not {target.text}")


def test_a_regions_controls_are_asked_about_its_own_prompt(backbone, trajectory):
    plan = of(Region(a("a"), mask=LEFT), Region(a("bb"), mask=RIGHT, controls=(Refuse(),)))
    with pytest.raises(ValueError, match="not bb"):
        edit(backbone, trajectory, a("x"), plan=plan)
    assert backbone.evaluations == []


def test_controls_that_fit_the_plan_but_not_each_other_are_refused_in_the_region(backbone, trajectory):
    @dataclass(frozen=True, eq=False)
    class Bank(Control):
        def needs(self):
            return Needs(keys="bank")

    plan = replace(of(Region(a("bb"), mask=RIGHT, controls=(Bank(),))), controls=(Bank(),))
    with pytest.raises(ValueError, match="Bank and Bank cannot act together"):
        edit(backbone, trajectory, a("x"), plan=plan)
    # In different regions they never meet.
    apart = of(*(Region(a("bb"), mask=mask, controls=(Bank(),)) for mask in (LEFT, RIGHT)))
    edit(backbone, trajectory, a("x"), plan=apart)
