"""Core's MODELs at random weights: what a pass costs does not depend on them."""

from __future__ import annotations

import sys
from typing import Any

import torch

SPREAD = 0.03  # small enough that nothing overflows in half precision


def start_core(checkout: str, cpu: bool) -> None:
    """Makes ComfyUI's package importable, with the arguments that its own start would have."""
    sys.path.insert(0, checkout)
    sys.argv = ["main.py"] + (["--cpu"] if cpu else [])
    import comfy.options

    comfy.options.enable_args_parsing()


def random_patcher(kind: str, config: dict[str, Any], dtype: torch.dtype):
    """Core's ModelPatcher around a network of a kind in `comfy.supported_models`, made in inference mode as its loader
    makes them."""
    import comfy.model_management as management
    import comfy.model_patcher
    import comfy.supported_models as models

    made = getattr(models, kind)(dict(config))
    made.set_inference_dtype(dtype, None)
    with torch.inference_mode():
        model = made.get_model({}, "", device="cpu")
        for name, weight in model.diffusion_model.named_parameters():
            weight.data = torch.empty(weight.shape, dtype=dtype).uniform_(-SPREAD, SPREAD)
            if "norm" in name and weight.ndim == 1 and name.endswith("weight"):
                weight.data += 1
    return comfy.model_patcher.ModelPatcher(model, management.get_torch_device(), management.unet_offload_device())
