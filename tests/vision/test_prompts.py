import pytest

from weft.tests.vision.by_color import moving
from weft.vision.prompts import check_prompts, read_frames, read_prompts, write_frames


@pytest.mark.parametrize(
    ("text", "want"),
    {
        "3,4": {2: ((3, 4),)},
        "3, 4; 5.5 6": {2: ((3, 4), (5.5, 6))},
        "3,4\n0: 5,6; 7,8\n9,1": {0: ((5, 6), (7, 8)), 2: ((3, 4), (9, 1))},
        "0:1,1; 1: 2,2": {0: ((1, 1),), 1: ((2, 2),)},
        '[{"x": 3, "y": 4}, {"x": 5, "y": 6}]': {2: ((3, 4), (5, 6))},
        "[[3, 4]]": {2: ((3, 4),)},
    }.items(),
)
def test_points_are_read(text, want):
    asked = read_prompts(text, frame=2)
    assert {k: things[0].points for k, things in asked.items()} == want
    assert list(asked) == sorted(asked)


def test_every_box_is_a_thing_and_takes_the_points_inside():
    ((first, second, free),) = read_prompts("2,2; 9,9", "1,1", "0,0,4,4; 5,0,9,4").values()
    assert (first.points, first.box, first.not_points) == (((2, 2),), (0, 0, 4, 4), ((1, 1),))
    assert (second.points, second.box) == ((), (5, 0, 9, 4))
    assert (free.points, free.box) == (((9, 9),), None)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (("", "", ""), "no point and no box"),
        (("", "3,3", ""), "negative points alone"),
        (("0: 3,3", "1: 3,3", ""), "negative points at frame 1"),
        (("three, four", "", ""), "cannot read 'three, four' of positive: want 'x,y'"),
        (("3", "", ""), "cannot read '3' of positive"),
        (("", "", "1,2,3"), "cannot read '1,2,3' of boxes: want 'left,top,right,bottom'"),
        (("a: 3,4", "", ""), "cannot read 'a: 3,4'"),
        (("[1, 2]", "", ""), "as JSON"),
        (("[[1, 2, 3]]", "", ""), r"cannot read \[1.0, 2.0, 3.0\]"),
        (("[", "", ""), "as JSON"),
    ],
)
def test_what_cannot_be_read_is_said(texts, message):
    with pytest.raises(ValueError, match=message):
        read_prompts(*texts)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (("16,3",), "the point 16,3 at frame 0 is outside the picture, which is 16x12: want x in 0..15"),
        (("-1,3",), "the point -1,3"),
        (("3,12",), "y in 0..11"),
        (("3,3", "3,99"), "the point 3,99"),
        (("", "", "1,1,17,4"), "the box 1,1,17,4 at frame 0 is not inside"),
        (("", "", "4,4,4,8"), "left < right"),
        (("6: 3,3",), "there is no frame 6: the clip has 6, numbered 0 to 5"),
    ],
)
def test_prompts_outside_the_clip_are_refused(texts, message):
    with pytest.raises(ValueError, match=message):
        check_prompts(read_prompts(*texts), moving())


def test_frames_are_read():
    assert read_frames("0", 6) == (0,)
    assert read_frames(" 5, 0;5", 6) == (0, 5)
    assert read_frames("all", 3) == (0, 1, 2)
    assert read_frames(write_frames((1, 4)), 6) == (1, 4)


@pytest.mark.parametrize(("text", "message"), [("", "cannot read"), ("first", "cannot read"), ("6", "no frame 6")])
def test_frames_that_are_none_are_refused(text, message):
    with pytest.raises(ValueError, match=message):
        read_frames(text, 6)


def test_json_may_name_frames_and_hold_boxes():
    asked = read_prompts('[{"x": 3, "y": 4}, {"x": 5, "y": 6, "frame": 2}]', "", '[{"box": [0, 0, 9, 9], "frame": 2}]')
    assert [prompts.points for prompts in asked[0]] == [((3, 4),)]
    assert [(prompts.box, prompts.points) for prompts in asked[2]] == [((0, 0, 9, 9), ((5, 6),))]
