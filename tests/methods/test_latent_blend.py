from dataclasses import replace

import pytest
import torch

from weft.engine.edit import edit
from weft.engine.inversion import invert
from weft.engine.monitor import SILENT
from weft.engine.plan import PLAIN, Control, EditPlan, Step
from weft.engine.words import Layout
from weft.methods.latent_blend import LatentBlend
from weft.tests.engine.analytic import Gaussian
from weft.tests.numerics import assert_close
from weft.tests.tiny import make_latents

SIZE = (6, 10)  # of the latents, and of the frames of this backbone
LAYOUT = Layout(1)


@pytest.fixture
def backbone():
    return Gaussian()


@pytest.fixture
def trajectory(backbone):
    return invert(backbone, backbone.sample(frames=3), backbone.text.embed("a dog"), steps=4)


@pytest.fixture
def run(backbone, trajectory):
    return lambda plan=PLAIN: edit(backbone, trajectory, backbone.text.embed("a red cat"), plan=plan)


def blend(mask, **numbers):
    return PLAIN.then(LatentBlend(mask, **numbers)).controls[0]


def step_of(backbone, trajectory, z, level, index, steps=4):
    """After a step of the run."""
    return Step(z, level, index, steps, trajectory, None, backbone.denoiser, SILENT, 0, {}, None)


def one(*place, frames=1, size=SIZE, value=1.0):
    mask = torch.zeros(frames, *size)
    mask[place] = value
    return mask


@pytest.mark.parametrize("frames", [1, 3])
def test_a_mask_of_ones_is_the_plain_edit_bit_for_bit(run, frames):
    assert torch.equal(run(PLAIN.then(LatentBlend(torch.ones(frames, *SIZE)))), run())


@pytest.mark.parametrize("frames", [1, 3])
def test_a_mask_of_zeros_is_the_source_bit_for_bit(run, backbone, trajectory, frames):
    got = run(PLAIN.then(LatentBlend(torch.zeros(frames, *SIZE))))
    assert torch.equal(got, backbone.codec.unscale(trajectory.latents[0]))
    assert not torch.equal(run(), got)


def test_outside_the_mask_the_source_is_kept_at_every_level(backbone, trajectory):
    mask = one(0, slice(0, 3), slice(0, 4))
    z = torch.randn(3, 4, *SIZE)
    for level in range(4):
        got = blend(mask, dilate=0).after_step(step_of(backbone, trajectory, z, level, 3 - level))
        assert torch.equal(got[:, :, :3, :4], z[:, :, :3, :4])
        assert torch.equal(got[:, :, 3:], trajectory.latents[level][:, :, 3:])
        assert torch.equal(got[:, :, :, 4:], trajectory.latents[level][:, :, :, 4:])


def test_a_mask_per_frame_acts_on_its_own_frame(run, backbone, trajectory):
    mask = torch.stack([torch.zeros(SIZE), torch.ones(SIZE), torch.zeros(SIZE)])
    got, source, plain = run(PLAIN.then(LatentBlend(mask))), backbone.codec.unscale(trajectory.latents[0]), run()
    assert torch.equal(got[[0, 2]], source[[0, 2]])
    assert torch.equal(got[1], plain[1])  # this denoiser treats frames one by one


@pytest.mark.parametrize(("schedule", "inside", "outside"), [("paper_ramp", 1, 0), ("shrink", 0, 1)])
def test_schedules_ramp_on_one_side_of_the_mask_and_end_with_it(backbone, trajectory, schedule, inside, outside):
    """After step s of 4: the edit's share is s/4 where it ramps up, 1 - s/4 where it ramps down."""
    mask, z = one(0, slice(0, 3), slice(0, 4)), torch.randn(3, 4, *SIZE)
    control = blend(mask, dilate=0, schedule=schedule)
    for index in range(4):
        level = 3 - index
        step = step_of(backbone, trajectory, z, level, index)
        source, got, share = trajectory.latents[level], control.after_step(step), (index + 1) / 4
        within, beyond = (share, 0.0) if inside else (1.0, 1 - share)
        want = torch.where(mask[:, None] > 0, torch.lerp(source, z, within), torch.lerp(source, z, beyond))
        assert_close(got, want)
        hard = blend(mask, dilate=0).after_step(step)
        assert torch.equal(got, hard) == (index == 3)


@pytest.mark.parametrize("schedule", ["paper_ramp", "shrink"])
def test_without_a_hole_shrink_is_the_plain_edit_and_without_a_mask_all_end_with_the_source(run, backbone, schedule):
    source = run(PLAIN.then(LatentBlend(torch.zeros(1, *SIZE))))
    assert torch.equal(run(PLAIN.then(LatentBlend(torch.zeros(1, *SIZE), schedule=schedule))), source)
    everywhere = run(PLAIN.then(LatentBlend(torch.ones(1, *SIZE), schedule=schedule)))
    assert torch.equal(everywhere, run()) == (schedule == "shrink")


def test_a_feather_fades_outside_the_mask_by_equal_steps():
    cells = blend(one(0, 2, 1), dilate=0, feather=3).cells(LAYOUT, SIZE)
    assert_close(cells[0, 0, 2, :6], torch.tensor([0.75, 1.0, 0.75, 0.5, 0.25, 0.0]))
    assert_close(cells[0, 0, :, 1], torch.tensor([0.5, 0.75, 1.0, 0.75, 0.5, 0.25]))
    dilated = blend(one(0, 2, 1), dilate=1, feather=1).cells(LAYOUT, SIZE)
    assert_close(dilated[0, 0, 2, :5], torch.tensor([1.0, 1.0, 1.0, 0.5, 0.0]))


@pytest.mark.parametrize(("value", "edited"), [(1.0, 1), (0.5, 1), (0.49, 0)])
def test_a_cell_is_edited_if_any_of_its_pixels_is_half_masked(value, edited):
    """Frames of 24x30 pixels over 6x10 cells: 4x3 pixels a cell."""
    mask = one(0, 11, 29, size=(24, 30), value=value)
    assert torch.equal(blend(mask, dilate=0).cells(LAYOUT, SIZE), one(0, 2, 9, value=edited)[:, None])


def test_dilation_grows_the_region_by_a_cell_on_every_side():
    mask = one(0, 2, 5)
    assert blend(mask, dilate=0).cells(LAYOUT, SIZE).sum() == 1
    assert torch.equal(blend(mask).cells(LAYOUT, SIZE), one(0, slice(1, 4), slice(4, 7))[:, None])
    assert torch.equal(blend(mask, dilate=2).cells(LAYOUT, SIZE), one(0, slice(0, 5), slice(3, 8))[:, None])
    corner = blend(one(0, 0, 0), dilate=1).cells(LAYOUT, SIZE)
    assert torch.equal(corner, one(0, slice(0, 2), slice(0, 2))[:, None])


def test_dilation_does_not_reach_other_frames():
    cells = blend(one(1, 2, 5, frames=3), dilate=3).cells(LAYOUT, SIZE)
    assert cells.shape == (3, 1, *SIZE)
    assert cells[1].any()
    assert not cells[[0, 2]].any()


def test_masks_of_comfyui_are_inference_tensors(run):
    with torch.inference_mode():
        mask = one(0, slice(2, 4), slice(2, 6))
        got = run(PLAIN.then(LatentBlend(mask)))
    assert torch.equal(got, run(PLAIN.then(LatentBlend(mask))))


def test_it_comes_after_what_the_plan_already_has():
    first = PLAIN.then(Control())
    second = first.then(LatentBlend(torch.zeros(1, *SIZE), dilate=0))
    assert isinstance(second, EditPlan)
    assert second.controls[0] is first.controls[0]
    assert second.controls[1].dilate == 0
    assert len(first.controls) == 1


def test_two_of_a_plan_become_one_that_edits_what_either_masks():
    """One after the other they would edit only what both do."""
    first = PLAIN.then(LatentBlend(torch.ones(1, *SIZE)))
    second = first.then(Control()).then(LatentBlend(torch.zeros(1, *SIZE), dilate=0))
    both, _ = second.controls
    assert (both.dilate, [b.dilate for b in both.others]) == (1, [0])
    assert first.controls[0].others == ()


LEFT, RIGHT = (slice(None), slice(0, 6), slice(0, 3)), (slice(None), slice(0, 6), slice(6, 10))


def test_two_apart_are_a_union_and_the_rest_keeps_the_sources_bits(run, backbone, trajectory):
    """This denoiser treats cells one by one, so that in a region the edit is the plain one."""
    plan = PLAIN.then(LatentBlend(one(*LEFT), dilate=0)).then(LatentBlend(one(*RIGHT, frames=3), dilate=0))
    got, plain, source = run(plan), run(), backbone.codec.unscale(trajectory.latents[0])
    edited = (one(*LEFT) + one(*RIGHT))[:, None].bool().expand_as(got)
    assert torch.equal(got[edited], plain[edited])
    assert torch.equal(got[~edited], source[~edited])
    for place in (LEFT, RIGHT):
        assert (got - source)[:, :, place[1], place[2]].abs().amin() > 0


@pytest.mark.parametrize("size", [(6, 10), (5, 9)])
def test_so_they_are_where_the_network_sees_cells_together(tiny_image, size):
    trajectory = invert(tiny_image, make_latents(3, size), tiny_image.text.embed("a red square"), steps=3)
    rows, columns = (2 * n for n in size)  # pixels
    masks = [one(0, slice(0, rows), place, size=(rows, columns)) for place in (slice(0, 6), slice(14, columns))]
    plan = EditPlan()
    for mask in masks:
        plan = plan.then(LatentBlend(mask, dilate=0))
    target = tiny_image.text.embed("a blue circle")
    got, source = edit(tiny_image, trajectory, target, plan=plan), tiny_image.codec.unscale(trajectory.latents[0])
    assert torch.equal(got[..., 3:7], source[..., 3:7])
    for changed in (got[..., :3] != source[..., :3], got[..., 7:] != source[..., 7:]):
        assert changed.all()


def test_each_of_two_keeps_its_own_schedule_and_a_cell_of_both_goes_by_the_larger_share(backbone, trajectory):
    numbers = ({"schedule": "paper_ramp"}, {"feather": 2})
    blends = [blend(mask, dilate=0, **n) for mask, n in zip((one(*LEFT), one(0, 2, 1)), numbers)]
    plan, z = PLAIN.then(blends[0]).then(blends[1]), torch.randn(3, 4, *SIZE)
    step = step_of(backbone, trajectory, z, 3, 0)
    share = torch.maximum(one(*LEFT) / 4, blends[1].cells(LAYOUT, SIZE)[:, 0])[:, None]
    assert_close(plan.controls[0].after_step(step), torch.lerp(trajectory.latents[3], z, share.expand_as(z)))


def test_of_two_either_mask_of_another_clip_is_refused(backbone, trajectory):
    plan = PLAIN.then(LatentBlend(torch.ones(1, *SIZE))).then(LatentBlend(torch.ones(2, *SIZE)))
    with pytest.raises(ValueError, match="the mask has 2 frames and the clip 3"):
        edit(backbone, trajectory, trajectory.prompt, plan=plan)


@pytest.mark.parametrize(
    ("mask", "numbers", "match"),
    [
        (torch.ones(6, 10), {}, r"want a mask \[F, H, W\], or \[1, H, W\] for all frames, got \[6, 10\]"),
        (torch.ones(3, 1, 6, 10), {}, r"want a mask \[F, H, W\], .* got \[3, 1, 6, 10\]"),
        (one(0, 1, 1, value=float("nan")), {}, r"the mask must hold numbers in 0\.\.1"),
        (one(0, 1, 1, value=255.0), {}, r"the mask must hold numbers in 0\.\.1, got 0 to 255"),
        (one(0, 1, 1, value=-0.5), {}, r"the mask must hold numbers in 0\.\.1, got -0\.5 to 0"),
        (torch.ones(1, 6, 10), {"dilate": -1}, "dilate must be 0 or more latent cells, got -1"),
        (torch.ones(1, 6, 10), {"feather": -2}, "feather must be 0 or more latent cells, got -2"),
        (torch.ones(1, 6, 10), {"schedule": "soft"}, "no blend schedule 'soft': want one of hard, paper_ramp, shrink"),
        (torch.ones(0, 6, 10), {}, r"want a mask \[F, H, W\], .* got \[0, 6, 10\]"),
    ],
)
def test_masks_and_numbers_that_make_no_sense_are_refused(mask, numbers, match):
    with pytest.raises(ValueError, match=match):
        PLAIN.then(LatentBlend(mask, **numbers))


@pytest.mark.parametrize(
    ("shape", "match"),
    [
        ((2, 12, 20), "the mask has 2 frames and the clip 3: give one mask a frame, or one for all"),
        ((3, 20, 12), "the mask is 12x20 pixels and the clip 20x12: make the mask from the same frames"),
        ((1, 6, 10), "the mask is 10x6 pixels and the clip 20x12"),
    ],
)
def test_a_mask_of_another_clip_is_refused_before_anything_runs(backbone, trajectory, shape, match):
    backbone.denoiser.layout = Layout(2)
    backbone.evaluations.clear()
    with pytest.raises(ValueError, match=match):
        edit(backbone, trajectory, trajectory.prompt, plan=PLAIN.then(LatentBlend(torch.ones(shape))))
    assert backbone.evaluations == []


def test_controls_with_masks_can_be_compared_and_copied():
    """ComfyUI hashes and compares what it caches."""
    control = blend(torch.ones(1, *SIZE))
    assert control == control
    assert control != blend(torch.ones(1, *SIZE))
    assert len({control, replace(control, dilate=2)}) == 2
