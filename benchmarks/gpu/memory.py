"""Does it fit a small card, and does memory stay when the clip grows? Under a cap that torch itself enforces."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ...engine.edit import edit
from ...engine.inversion import add_noise, invert
from ...engine.plan import PLAIN
from ...methods.gather_swap import GatherSwap
from ...methods.token_flow import TokenFlow
from .models import WORDS, Size, image_model
from .report import Report

SMALL_CARD = 8e9  # bytes
GROWTH = 1.1  # of memory, from a clip of 96 frames to one of 1,440
STEPS = 2


@contextmanager
def card_of(size: float, device: torch.device) -> Iterator[None]:
    """As if the GPU had no more than so many bytes."""
    if device.type != "cuda":
        yield
        return
    torch.cuda.empty_cache()
    whole = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, size / whole), device)
    torch.cuda.reset_peak_memory_stats(device)
    free, torch.cuda.mem_get_info = torch.cuda.mem_get_info, lambda at=None: _left(size, device)
    try:
        yield
    finally:
        torch.cuda.mem_get_info = free
        torch.cuda.set_per_process_memory_fraction(1.0, device)


def _left(size: float, device: torch.device) -> tuple[int, int]:
    """What the driver of a card of that size would say."""
    return int(size - torch.cuda.memory_reserved(device)), int(size)


def on_a_small_card(report: Report, size: Size, device: torch.device, dtype: torch.dtype) -> None:
    """Encode, invert, edit and decode one clip in 8 GB."""
    frames = torch.rand(size.frames, 8 * size.image[0], 8 * size.image[1], 3)
    with card_of(SMALL_CARD, device):
        backbone = image_model(size, device, dtype)
        source, target, empty = (backbone.text.embed(text) for text in (" ".join(WORDS), " ".join(WORDS[1:]), ""))
        latents = backbone.codec.encode(frames)
        report.passed("encode in 8 GB", _peak(device))
        trajectory = invert(backbone, latents, source, steps=STEPS)
        plan = PLAIN.then(TokenFlow(batch=min(8, size.frames)))
        edited = edit(backbone, trajectory, target, negative=empty, plan=plan)
        report.passed("invert and edit with TokenFlow in 8 GB", _peak(device))
        made = backbone.codec.decode(edited)
        right = made.shape == frames.shape and bool(made.isfinite().all())
        report.judge(right, "decode in 8 GB", _peak(device))


def on_a_long_clip(report: Report, size: Size, device: torch.device, dtype: torch.dtype) -> None:
    """VIA's gather-swap on InstructPix2Pix: 1,440 frames in no more memory than 96, at half the width and height."""
    backbone = image_model(size, device, dtype, instruct=True)
    source, target = backbone.text.embed(""), backbone.text.embed(" ".join(WORDS))
    h, w = (side // 2 for side in size.image)
    short, peaks = max(size.long // 15, 8), []
    for frames in (short, size.long):
        trajectory = add_noise(backbone, torch.randn(frames, 4, h, w), source, steps=STEPS)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        edit(backbone, trajectory, target, plan=PLAIN.then(GatherSwap(group=4)), chunk_frames=min(96, short))
        peaks.append(torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 1)
    said = f"{peaks[1] / 1e9:.2f} GB against {peaks[0] / 1e9:.2f} GB"
    report.judge(peaks[1] <= GROWTH * peaks[0], f"{size.long} frames in the memory of {short}", said)


def _peak(device: torch.device) -> str:
    return f"peak {torch.cuda.max_memory_allocated(device) / 1e9:.2f} GB" if device.type == "cuda" else "no GPU"
