"""Latent blend: outside the mask, the edit keeps the source.

paper    STR-Match, Lee et al. 2025, equation 6 (Blended Diffusion, Avrahami et al. 2022)
needs    a mask of the thing to edit; the source's trajectory
gives    a Control that acts after a step
differs  nothing: the mask is resized by area to the latent grid, so a cell is edited if any of it is masked, and
         dilated by cells; the paper gives no kernel, ours is 3x3

z <- (1 - dilate(M)) z_source + dilate(M) z
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from ..engine.autograd import ordinary, plain_torch
from ..engine.nouns import Control, EditPlan, Step, Trajectory

if TYPE_CHECKING:
    from ..backbones.protocol import Backbone

Schedule = Literal["hard"]


@dataclass(frozen=True, eq=False)
class LatentBlend(Control):
    """See `latent_blend`."""

    mask: Tensor  # [1 or F, H, W] in 0..1
    dilate: int = 1
    schedule: Schedule = "hard"

    def __post_init__(self):
        if self.mask.ndim != 3 or not self.mask.numel():
            raise ValueError(f"want a mask [F, H, W], or [1, H, W] for all frames, got {list(self.mask.shape)}")
        low, high = self.mask.min().item(), self.mask.max().item()
        if not 0 <= low <= high <= 1:
            raise ValueError(f"the mask must hold numbers in 0..1, got {low:g} to {high:g}")
        if self.dilate < 0:
            raise ValueError(f"dilate must be 0 or more latent cells, got {self.dilate}")
        if self.schedule not in get_args(Schedule):
            raise ValueError(f"no blend schedule '{self.schedule}': want one of {', '.join(get_args(Schedule))}")

    def check(self, trajectory: Trajectory, backbone: Backbone) -> None:
        frames, _, h, w = trajectory.latents[0].shape
        if len(self.mask) not in (1, frames):
            raise ValueError(
                f"the mask has {len(self.mask)} frames and the clip {frames}: give one mask a frame, or one for all"
            )
        size, want = tuple(self.mask.shape[1:]), (h * backbone.pixels_per_cell, w * backbone.pixels_per_cell)
        if size != want:
            raise ValueError(
                f"the mask is {size[1]}x{size[0]} pixels and the clip {want[1]}x{want[0]}: make the mask from the same "
                "frames that were encoded"
            )

    def after_step(self, step: Step) -> Tensor:
        keep = self.cells(step.latents.shape[-2:]).to(step.latents)
        return torch.lerp(step.source_latents(), step.latents, keep)

    @plain_torch
    def cells(self, grid: tuple[int, int]) -> Tensor:
        """[1 or F, 1, h, w] of 0 and 1: which latent cells are edited."""
        # Half, not any: a mask that was a video has faint specks around its edge.
        cells = (F.adaptive_max_pool2d(ordinary(self.mask)[:, None].float(), tuple(grid)) >= 0.5).float()
        for _ in range(self.dilate):
            cells = F.max_pool2d(cells, 3, stride=1, padding=1)
        return cells


def latent_blend(plan: EditPlan, mask: Tensor, *, dilate: int = 1, schedule: Schedule = "hard") -> EditPlan:
    """`plan` with the source kept outside a mask.

    Args:
        mask: [F, H, W], or [1, H, W] for all frames, at the frames' size; 0.5 and more is edited.
        dilate: grow the edited region by this many latent cells.
        schedule: "hard" keeps the source outside the mask at every step.

    Raises:
        ValueError: a mask of another shape or range, or an unknown schedule; when sampling, one that does not fit the
            clip.
    """
    return plan.then(LatentBlend(mask, dilate, schedule))
