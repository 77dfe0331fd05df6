import torch

from weft.tests.vision.by_color import moving, truth
from weft.vision.ports import Prompts
from weft.vision.show import OFF, ON, overlay


def test_pictures_show_mask_points_and_box():
    frame = moving()[0]
    asked = Prompts(((3, 5),), ((12, 10),), (1, 1, 8, 9))
    picture = overlay(frame, truth(frame), (asked,))
    changed = (picture != frame).any(-1)
    assert changed[4:7, 2:5].all()
    assert changed[1, 1:9].all()
    assert changed[10, 12]
    assert not changed[11, 0]
    assert torch.equal(frame, moving()[0])  # the frame itself is left alone


def test_what_reaches_over_the_edge_is_cut_there():
    frame = torch.zeros(20, 30, 3)
    picture = overlay(frame, torch.zeros(20, 30), (Prompts(((0, 0),), ((29, 19),), (0, 0, 30, 20)),))
    green, red = ((picture == picture.new_tensor(color)).all(-1) for color in (ON, OFF))
    assert green[0].all()
    assert green[:, 0].all()
    assert green[19, :28].all()  # a box that ends with the picture is seen on all sides
    assert green[:18, 29].all()
    assert red[19, 29]
    assert not picture[2:18, 2:28].any()


def test_lines_and_points_grow_with_the_picture():
    frame = torch.zeros(1024, 1024, 3)
    picture = overlay(frame, torch.zeros(1024, 1024), (Prompts(((600, 300),), (), (100, 200, 900, 800)),))
    seen = (picture == picture.new_tensor(ON)).all(-1)
    assert seen[200, 100:901].all()
    assert 3 <= seen[500, :500].sum() <= 6  # the left line
    assert seen[300, 590:611].all()
    assert not seen[300, 580]
