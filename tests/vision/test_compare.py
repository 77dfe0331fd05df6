import pytest
import torch

from weft.vision.compare import GAP, side_by_side


def test_clips_stand_beside_each_other_in_step():
    a, b = torch.rand(3, 6, 8, 3), torch.rand(2, 3, 5, 3)
    sheet = side_by_side(a, b)
    assert sheet.shape == (3, 6, 8 + GAP + 10, 3)
    assert torch.equal(sheet[:, :, :8], a)
    assert (sheet[:, :, 8 : 8 + GAP] == 1).all()
    large = b.repeat_interleave(2, 1).repeat_interleave(2, 2)
    assert torch.equal(sheet[:2, :, 8 + GAP :], large)
    assert torch.equal(sheet[2, :, 8 + GAP :], large[1])  # the shorter holds its last frame


def test_masks_are_no_clip():
    with pytest.raises(ValueError, match="want clips of frames with 3 colors, got 2 x 4 x 4"):
        side_by_side(torch.rand(2, 4, 4))
