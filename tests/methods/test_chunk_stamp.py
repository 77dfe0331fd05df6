"""Each part proves which it is, after a transport in 8 bits too."""

import pytest
import torch

from weft.methods.chunk_stamp import BITS, Stamp, merge_proven, read_stamp, stamped
from weft.methods.chunks import plan_chunks, select

FRAMES, COUNT = 9, 3
PLAN = plan_chunks(FRAMES, COUNT, group=2)


def clip():
    return torch.rand(FRAMES, 8, 12, 3, generator=torch.Generator().manual_seed(0))


def part(index, plan=PLAN, frames=None):
    """What a worker sends that changes nothing."""
    frames, _, chunk = select(plan, index, clip() if frames is None else frames)
    return stamped(frames, chunk)


def sent(*parts):
    return torch.cat(parts)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_parts_come_together_in_any_order(order):
    assert torch.equal(merge_proven(PLAN, sent(*map(part, order))), clip())


def test_stamps_survive_pictures_of_8_bits_that_are_rounded_down():
    through = (sent(*map(part, range(COUNT))) * 255).byte() / 255
    assert torch.equal(merge_proven(PLAN, through), (clip() * 255).byte() / 255)


def test_a_stamp_says_which_part_of_how_many():
    stamps = [read_stamp(part(i)[-1]) for i in range(COUNT)]
    assert stamps == [Stamp(i, COUNT, stamps[0].plan) for i in range(COUNT)]


@pytest.mark.parametrize("value", [0.0, 1.0, 0.5])
def test_no_picture_is_taken_for_a_stamp(value):
    assert read_stamp(torch.full((8, 12, 3), value)) is None
    assert not any(read_stamp(frame) for frame in clip().round())
    assert read_stamp(torch.zeros(1, 1, 3)) is None
    broken = part(0)[-1]
    broken.view(-1)[BITS - 1] = 1 - broken.view(-1)[BITS - 1]
    assert read_stamp(broken) is None


def test_a_stamp_costs_no_picture_and_leaves_the_part_as_it_is():
    frames, _, chunk = select(PLAN, 1, clip())
    before = frames.clone()
    assert torch.equal(stamped(frames, chunk)[:-1], before)


STILL = torch.full((FRAMES, 8, 12, 3), 0.5)  # on which agreement of the frames proves nothing
OTHER_PLANS = [plan_chunks(FRAMES, COUNT, group=3), plan_chunks(FRAMES, 2, group=2), plan_chunks(10, COUNT, group=2)]


@pytest.mark.parametrize("frames", [None, STILL], ids=["moving", "still"])
@pytest.mark.parametrize(
    ("parts", "match"),
    [
        ((0, 1), "no part 2 of 3"),
        ((2,), "no part 0, 1 of 3"),
        ((0, 1, 1), "part 1 came twice"),
        ((0, 0, 1, 2), "part 0 came twice"),
    ],
)
def test_missing_and_doubled_parts_are_named(parts, match, frames):
    with pytest.raises(ValueError, match=match):
        merge_proven(PLAN, sent(*(part(i, frames=frames) for i in parts)))


@pytest.mark.parametrize("other", OTHER_PLANS[:2])
def test_a_part_of_another_plan_is_refused(other):
    with pytest.raises(ValueError, match=r"part 1 of \d was cut by another plan"):
        merge_proven(PLAN, sent(part(0), part(1, other), part(2)))


def test_what_was_lost_on_the_way_is_told():
    whole = sent(part(0), part(1), part(2))
    with pytest.raises(ValueError, match="part 0 has 4 frames, and 3 of them came"):
        merge_proven(PLAN, whole[1:])
    with pytest.raises(ValueError, match="the last 4 frames have no stamp"):
        merge_proven(PLAN, whole[:-1])
    with pytest.raises(ValueError, match="order says"):
        merge_proven(PLAN, whole, [1, 0, 2])


def test_a_part_with_its_number_and_the_frames_of_another_is_refused():
    wrong = sent(part(0), part(1)[:-1].flip(0), part(1)[-1:], part(2))
    with pytest.raises(ValueError, match="chunk 1 is not what the others are parts of"):
        merge_proven(PLAN, wrong)


def test_without_stamps_order_and_agreement_decide(caplog):
    bare, uneven = sent(*(part(i)[:-1] for i in (1, 0, 2))), plan_chunks(FRAMES, COUNT, group=(0, 4))
    assert torch.equal(merge_proven(PLAN, bare, [1, 0, 2]), clip())
    with pytest.raises(ValueError, match="is not what the others are parts of"):
        merge_proven(uneven, sent(*(part(i, uneven)[:-1] for i in (1, 0, 2))))
    assert "the parts have no stamps" in caplog.text


def test_what_cannot_be_stamped_is_refused():
    frames, _, chunk = select(PLAN, 1, clip())
    with pytest.raises(ValueError, match="part 1 has 5 frames, and 4 are connected"):
        stamped(frames[:-1], chunk)
    with pytest.raises(ValueError, match=f"at least {-(-BITS // 3)} pixels"):
        stamped(frames[:, :4, :4], chunk)
