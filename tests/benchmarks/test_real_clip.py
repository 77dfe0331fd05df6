"""The warp error along a clip's own optical flow."""

import pytest
import torch
import torch.nn.functional as F

from weft.benchmarks.real_clip import flow_warp_error

STEP = 2  # pixels a frame


@pytest.fixture(scope="module")
def moving():
    """[4, 64, 64, 3]: a smooth texture that moves to the right by two pixels a frame."""
    noise = torch.rand(1, 3, 16, 24, generator=torch.Generator().manual_seed(0))
    wide = F.interpolate(noise, (64, 96), mode="bicubic").clamp(0, 1)
    return torch.stack([wide[0, :, :, 16 - STEP * i : 80 - STEP * i].movedim(0, -1) for i in range(4)])


def test_a_clip_along_its_own_flow_hardly_differs(moving):
    still = 255 * (moving[1:] - moving[:-1]).square().mean().sqrt().item()
    assert flow_warp_error(moving, moving) < still / 4


def test_flicker_counts_in_levels_of_255(moving):
    lighter = moving.clone() * 0.5
    lighter[1::2] += 0.1
    assert flow_warp_error(lighter, moving) == pytest.approx(25.5, rel=0.1)


def test_a_picture_that_stands_still_does_not_go_along(moving):
    still = moving[:1].expand_as(moving)
    assert flow_warp_error(still, moving) > 4 * flow_warp_error(moving, moving)
