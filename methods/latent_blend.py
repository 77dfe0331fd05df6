"""Latent blend: outside the mask, the edit keeps the source.

paper    STR-Match, Lee et al. 2025, equation 6 (Blended Diffusion, Avrahami et al. 2022); VIA, Gu et al. 2024
         (arXiv 2406.12831), section 4.1, Progressive Boundary Integration
needs    a mask of the thing to edit; the source's trajectory
gives    a Control that acts after a step
differs  the mask is resized by area to the latent grid, so a cell is edited if any of it is masked, and dilated by
         cells; the paper gives no kernel, ours is 3x3. Two blends in one plan edit what either of them
         masks. "shrink" is ours: VIA's text asks for a ramp, and finds that plain blending keeps too much of the
         source, which a ramp keeps even longer

z <- (1 - m) z_source + m z    after step s of S, with M = feather(dilate(mask))

    hard        m = M
    paper_ramp  m = s/S M              the edit comes in slowly
    shrink      m = M + (1 - s/S)(1 - M)   the source comes back slowly
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from ..engine.autograd import plain_torch
from ..engine.plan import Control, Step, require_mask
from ..engine.source import Trajectory
from ..engine.words import Layout, Model, Prompt

Schedule = Literal["hard", "paper_ramp", "shrink"]


@dataclass(frozen=True, eq=False)
class LatentBlend(Control):
    """The source kept outside a mask.

    Args:
        mask: [F, H, W], or [1, H, W] for all frames, at the frames' size; 0.5 and more is edited.
        dilate: grow the edited region by this many latent cells.
        schedule: "hard" keeps the source outside the mask at every step. "paper_ramp" (VIA) lets the edit into the mask
            slowly, step by step; "shrink" lets it everywhere at first and takes it back to the mask. All end with the
            mask itself.
        feather: outside the mask, let the edit fade into the source over this many latent cells.
        others: blends of the same plan, each with its own mask: a cell is edited as far as any of them has it.

    Raises:
        ValueError: a mask of another shape or range, or an unknown schedule; when sampling, one that does not fit the
            clip.
    """

    mask: Tensor  # [1 or F, H, W] in 0..1
    dilate: int = 1
    schedule: Schedule = "hard"
    feather: int = 0
    others: tuple[LatentBlend, ...] = ()

    def __post_init__(self):
        object.__setattr__(self, "mask", require_mask(self.mask))
        for name in ("dilate", "feather"):
            if (cells := getattr(self, name)) < 0:
                raise ValueError(f"{name} must be 0 or more latent cells, got {cells}")
        if self.schedule not in get_args(Schedule):
            raise ValueError(f"no blend schedule '{self.schedule}': want one of {', '.join(get_args(Schedule))}")

    def joined(self, other: Control) -> LatentBlend | None:
        """One after the other they would edit only what both mask, which is nothing if they are apart."""
        return replace(self, others=(*self.others, other)) if isinstance(other, LatentBlend) else None

    def check(self, trajectory: Trajectory, model: Model, target: Prompt | None) -> None:
        for blend in (self, *self.others):
            model.layout.require_mask(blend.mask, trajectory.at(0))

    def after_step(self, step: Step) -> Tensor:
        done = (step.index + 1) / step.steps
        edited = None
        for blend in (self, *self.others):
            share = blend.share(step, done)
            edited = share if edited is None else torch.maximum(edited, share)
        return torch.lerp(step.source_latents(), step.latents, edited)

    def share(self, step: Step, done: float) -> Tensor:
        """[1 or F, 1, h, w] in 0..1: how far each cell is edited once `done` of the run is over."""
        if self not in step.kept:
            step.kept[self] = self.cells(step.model.layout, step.latents.shape[-2:]).to(step.latents)
        edited = step.kept[self]
        if self.schedule == "paper_ramp":
            return done * edited
        return edited + (1 - done) * (1 - edited) if self.schedule == "shrink" else edited

    @plain_torch
    def cells(self, layout: Layout, grid: tuple[int, int]) -> Tensor:
        """[1 or F, 1, h, w] in 0..1: how far each latent cell is edited in the end."""
        cells = layout.cells(self.mask, grid)
        for _ in range(self.dilate):
            cells = _grown(cells)
        soft = cells
        for ring in range(1, self.feather + 1):
            cells = _grown(cells)
            soft = torch.maximum(soft, cells * (1 - ring / (self.feather + 1)))
        return soft


def _grown(cells: Tensor) -> Tensor:
    return F.max_pool2d(cells, 3, stride=1, padding=1)
