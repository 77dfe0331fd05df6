"""The shipped toy edit on the GPU against the CPU's, and twice on the GPU."""

from __future__ import annotations

import torch
from torch import Tensor

from ...backbones.diffusers.loading import load_backbone
from ...backbones.memory import PlainMemory
from ...engine.edit import edit
from ...engine.inversion import invert
from ...engine.plan import PLAIN
from ...measure.psnr import psnr
from ...methods.str_match import STRLatentOptimizer
from ...toyworld import world
from ..cases import WEIGHTS, Case, frames_of
from .report import Report

STEPS = 6
ALIKE = 40.0  # dB between the two devices' edits: rounding, over the steps, and far under what an eye sees


def compare_devices(report: Report, device: torch.device) -> None:
    """cuDNN may choose another way to the gradient of a convolution each time, unless it is told not to."""
    chosen, torch.backends.cudnn.deterministic = torch.backends.cudnn.deterministic, True
    try:
        on_cpu, once, again = (_edit(where) for where in (torch.device("cpu"), device, device))
    finally:
        torch.backends.cudnn.deterministic = chosen
    same = torch.equal(once, again)
    report.judge(same, "toy edit twice", "the same bits" if same else f"differ by {(once - again).abs().max():.1e}")
    alike = psnr(once, on_cpu)
    truth = frames_of(Case.of(0).target)
    said = f"{alike:.1f} dB between them; to the truth {psnr(on_cpu, truth):.2f} dB and {psnr(once, truth):.2f} dB"
    report.judge(alike >= ALIKE, f"toy edit on cpu and {device}", said)


def _edit(device: torch.device) -> Tensor:
    """[F, H, W, 3]: STR-Match on the first held-out clip."""
    case = Case.of(0)
    backbone = load_backbone(WEIGHTS / "video", dtype="float32", memory=PlainMemory(device))
    old, new = (backbone.text.embed(world.captions(clips)[0]) for clips in (case.source, case.target))
    latents = backbone.codec.encode(frames_of(case.source))
    trajectory = invert(backbone, latents, old, steps=STEPS)
    plan = PLAIN.then(STRLatentOptimizer(strength=0.5))
    how = {"negative": backbone.text.embed(""), "guidance": 4.0, "plan": plan}
    return backbone.codec.decode(edit(backbone, trajectory, new, **how))
