"""Networks of any size at random weights: what a step costs does not depend on what was learned."""

from __future__ import annotations

import torch
from torch import nn

from .lavie.network import Config, LaVieUNet

LAVIE = "LaVie"


def random_network(kind: str, device: str, dtype: torch.dtype, **sizes) -> nn.Module:
    """A frozen network of a class of diffusers, or LaVie's, with the sizes of that class by default. Its weights are so
    small that what it gives is finite."""
    import diffusers

    with torch.device("meta"):
        network = LaVieUNet(Config(**sizes)) if kind == LAVIE else getattr(diffusers, kind)(**sizes)
    network = network.to_empty(device=device).to(dtype).eval().requires_grad_(False)
    with torch.random.fork_rng(devices=[] if device == "cpu" else None):
        torch.manual_seed(0)
        for name, weight in network.named_parameters():
            if weight.ndim > 1:
                nn.init.normal_(weight, std=weight[0].numel() ** -0.5)
            else:
                nn.init.constant_(weight, float("norm" in name and name.endswith("weight")))
    for buffer in network.buffers():  # tables of places
        nn.init.zeros_(buffer)
    return network
