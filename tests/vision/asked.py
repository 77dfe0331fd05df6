"""What segmenters and detectors are asked, about noise, and a way to spoil their files."""

import torch

from weft.vision.ports import Prompts

PROMPTS = {
    "click": Prompts(((30, 20),)),
    "two clicks": Prompts(((30, 20), (5, 6))),
    "negative": Prompts(((30, 20),), ((2, 3),)),
    "box": Prompts(box=(10, 8, 40, 33)),
    "box and click": Prompts(((30, 20),), (), (10, 8, 40, 33)),
}


def noise(height, width, frames=None):
    shape = (height, width, 3) if frames is None else (frames, height, width, 3)
    return torch.rand(shape, generator=torch.Generator().manual_seed(1))


def truncated(path, source):
    """A file that ends early."""
    path.write_bytes(source.read_bytes()[:-1000])
