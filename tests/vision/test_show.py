import torch

from weft.tests.vision.by_color import moving, truth
from weft.vision.ports import Prompts
from weft.vision.show import overlay


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
