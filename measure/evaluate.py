"""Figures of an edit that need no network: distances to the source and to a reference, and flicker.

All frames are [F, H, W, 3] in 0..1; PSNR is in dB over all pixels and frames, capped at 90.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

CAP = 90.0


def evaluate_edit(
    source: Tensor, edit: Tensor, *, mask: Tensor | None = None, reference: Tensor | None = None
) -> dict[str, float]:
    """Compares an edited clip with its source.

    Args:
        mask: [F or 1, H, W] of the edited thing; adds `psnr_background` to the source where it is under 0.5
            and `psnr_edited` where it is not.
        reference: the wished-for edit; adds `psnr_reference`.

    Returns:
        psnr_source: how close the edit is to the source; high also for an edit that did nothing.
        flicker_source, flicker_edit: mean absolute difference of neighbouring frames, in 0..1: motion and noise.
        and the figures named above.

    Raises:
        ValueError: clips, mask or reference differ in frames or size, or hold NaN.
    """
    for name, clip in {"source": source, "edit": edit, "reference": reference}.items():
        if clip is None:
            continue
        if clip.ndim != 4 or clip.shape[-1] != 3:
            raise ValueError(f"want {name} frames [F, H, W, 3], got {list(clip.shape)}")
        if clip.shape != source.shape:
            raise ValueError(
                f"the {name} is {list(clip.shape)} and the source {list(source.shape)}: compare clips of the same "
                "frame count and size"
            )
        if not torch.isfinite(clip).all():
            raise ValueError(f"the {name} holds NaN or infinity")
    figures = {
        "psnr_source": psnr(edit, source),
        "flicker_source": _flicker(source),
        "flicker_edit": _flicker(edit),
    }
    if mask is not None:
        inside = _expand_mask(mask, source)
        figures["psnr_background"] = psnr(edit, source, ~inside)
        figures["psnr_edited"] = psnr(edit, source, inside)
    if reference is not None:
        figures["psnr_reference"] = psnr(edit, reference)
    return figures


def as_text(figures: dict[str, float]) -> str:
    """One figure a line, with its unit."""
    return "\n".join(
        f"{k:<16} {v:7.2f} dB" if k.startswith("psnr") else f"{k:<16} {v:7.4f}" for k, v in figures.items()
    )


def psnr(a: Tensor, b: Tensor, where: Tensor | None = None) -> float:
    """Peak signal-to-noise ratio in dB of values in 0..1, over the pixels [F, H, W] that `where` marks."""
    squared = (a.float() - b.float()).square()
    error = (squared if where is None else squared[where]).mean().item()
    if math.isnan(error):
        raise ValueError("no pixels to compare: the mask covers everything or nothing")
    return min(CAP, -10 * math.log10(max(error, 1e-12)))


def _flicker(clip: Tensor) -> float:
    return clip.diff(dim=0).abs().mean().item() if len(clip) > 1 else 0.0


def _expand_mask(mask: Tensor, clip: Tensor) -> Tensor:
    if mask.ndim != 3 or mask.shape[1:] != clip.shape[1:3] or len(mask) not in (1, len(clip)):
        raise ValueError(f"want a mask {list(clip.shape[:3])} or one frame of it, got {list(mask.shape)}")
    if not torch.isfinite(mask).all():
        raise ValueError("the mask holds NaN or infinity")
    return (mask >= 0.5).expand(clip.shape[:3])
