"""Latent blend: outside the mask, the edit keeps the source.

paper    STR-Match, Lee et al. 2025, equation 6 (Blended Diffusion, Avrahami et al. 2022); VIA, Gu et al. 2024
         (arXiv 2406.12831), section 4.1, Progressive Boundary Integration
needs    a mask of the thing to edit; the source's trajectory
gives    a Control that acts after a step
differs  the mask is resized by area to the latent grid, so a cell is edited if any of it is masked, and dilated by
         cells; the paper gives no kernel, ours is 3x3. "shrink" is ours: VIA's text asks for a ramp, and finds that
         plain blending keeps too much of the source, which a ramp keeps even longer

z <- (1 - m) z_source + m z    after step s of S, with M = feather(dilate(mask))

    hard        m = M
    paper_ramp  m = s/S M              the edit comes in slowly
    shrink      m = M + (1 - s/S)(1 - M)   the source comes back slowly
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

Schedule = Literal["hard", "paper_ramp", "shrink"]


@dataclass(frozen=True, eq=False)
class LatentBlend(Control):
    """See `latent_blend`."""

    mask: Tensor  # [1 or F, H, W] in 0..1
    dilate: int = 1
    schedule: Schedule = "hard"
    feather: int = 0

    def __post_init__(self):
        if self.mask.ndim != 3 or not self.mask.numel():
            raise ValueError(f"want a mask [F, H, W], or [1, H, W] for all frames, got {list(self.mask.shape)}")
        low, high = self.mask.min().item(), self.mask.max().item()
        if not 0 <= low <= high <= 1:
            raise ValueError(f"the mask must hold numbers in 0..1, got {low:g} to {high:g}")
        for name in ("dilate", "feather"):
            if (cells := getattr(self, name)) < 0:
                raise ValueError(f"{name} must be 0 or more latent cells, got {cells}")
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
        edited = self.cells(step.latents.shape[-2:]).to(step.latents)
        done = (step.index + 1) / step.steps
        if self.schedule == "paper_ramp":
            edited = done * edited
        elif self.schedule == "shrink":
            edited = edited + (1 - done) * (1 - edited)
        return torch.lerp(step.source_latents(), step.latents, edited)

    @plain_torch
    def cells(self, grid: tuple[int, int]) -> Tensor:
        """[1 or F, 1, h, w] in 0..1: how far each latent cell is edited."""
        # Half, not any: a mask that was a video has faint specks around its edge.
        cells = (F.adaptive_max_pool2d(ordinary(self.mask)[:, None].float(), tuple(grid)) >= 0.5).float()
        for _ in range(self.dilate):
            cells = _grown(cells)
        soft = cells
        for ring in range(1, self.feather + 1):
            cells = _grown(cells)
            soft = torch.maximum(soft, cells * (1 - ring / (self.feather + 1)))
        return soft


def _grown(cells: Tensor) -> Tensor:
    return F.max_pool2d(cells, 3, stride=1, padding=1)


def latent_blend(
    plan: EditPlan, mask: Tensor, *, dilate: int = 1, schedule: Schedule = "hard", feather: int = 0
) -> EditPlan:
    """`plan` with the source kept outside a mask.

    Args:
        mask: [F, H, W], or [1, H, W] for all frames, at the frames' size; 0.5 and more is edited.
        dilate: grow the edited region by this many latent cells.
        schedule: "hard" keeps the source outside the mask at every step. "paper_ramp" (VIA) lets the edit into the mask
            slowly, step by step; "shrink" lets it everywhere at first and takes it back to the mask. All end with the
            mask itself.
        feather: outside the mask, let the edit fade into the source over this many latent cells.

    Raises:
        ValueError: a mask of another shape or range, or an unknown schedule; when sampling, one that does not fit the
            clip.
    """
    return plan.then(LatentBlend(mask, dilate, schedule, feather))
