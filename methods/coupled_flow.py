"""Coupled flow: an edit without inversion, by the difference of two velocities.

paper    FlowEdit, Kulikov et al. 2024 (arXiv 2412.08629), algorithm 1; the pull is FlowAlign's, Kim et al. 2025
         (arXiv 2505.23145)
needs    two prompts; a model that predicts noise, v or velocity
gives    a Solver: what one step makes of the edit
differs  written in flow coordinates, in which a DDIM step is an Euler step, so that it runs on models of every
         prediction; any control acts on the edit as it is evaluated, and what it moves there the edit keeps

The edit z starts as the clean source x0. At each level the source is noised, q = (1 - s) x0 + s e with fresh noise e,
and the edit in the same noise is p = z + q - x0. With u the guided velocity at each,

    z <- z + (s' - s) (u(p; target) - u(q; source)) + pull (clean(q) - clean(p)),    averaged over some draws of e

What both velocities share, motion and layout, drops out, so z moves only where the prompts disagree.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..engine.autograd import ordinary
from ..engine.beside import parts_of, rejoined
from ..engine.edit import edit
from ..engine.inversion import source_of
from ..engine.plan import PLAIN, EditPlan, Region
from ..engine.ports import Backbone
from ..engine.schedule import Schedule
from ..engine.seeds import generator_for
from ..engine.solver import Seen
from ..engine.source import Noised, Trajectory
from ..engine.words import Model, Prompt


@dataclass(frozen=True)
class CoupledFlow:
    """See `Solver`.

    Args:
        start: share of the noise levels that are used, from the cleanest: over 0, at most 1. FlowEdit uses 33 of 50 for
            Stable Diffusion 3. More changes more.
        source_guidance: of the source's velocity, 0 or more. 1 is one evaluation a step less.
        averages: draws of the noise a step, at least 1.
        pull: of the edit's clean estimate towards the source's, a step; 0 or more. FlowAlign's is 0.01.

    Raises:
        ValueError: a number out of range; when sampling, a model that is given the source's picture.
    """

    start: float = 33 / 50
    source_guidance: float = 3.5
    averages: int = 1
    pull: float = 0.0

    def __post_init__(self):
        if not 0 < self.start <= 1:
            raise ValueError(f"want a start over 0 and up to 1, a share of the noise levels, got {self.start}")
        if self.averages < 1:
            raise ValueError(f"want 1 draw of the noise or more a step, got {self.averages}")
        for name in ("source_guidance", "pull"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"want a {name.replace('_', ' ')} of 0 or more, got {getattr(self, name)}")

    @property
    def draws(self) -> int:
        return self.averages

    def check(self, source: Trajectory, model: Model) -> None:
        if model.sees_source:
            raise ValueError(
                f"'{model.name}' is told what to do and given the source's picture: edit with Add Noise and Edit "
                "Sampler, or use a model whose prompts describe the clip"
            )

    def levels(self, schedule: Schedule) -> Sequence[int]:
        return range(max(1, round(self.start * schedule.steps)), 0, -1)

    def begin(self, source: Trajectory) -> Tensor:
        return source.at(0)

    def look(self, z: Tensor, source: Trajectory, level: int, draw: int, seed: int) -> tuple[Trajectory, Tensor]:
        clean = source.at(0).to(z)
        eps = torch.randn(z.shape, generator=generator_for(seed, level, draw)).to(z)
        noised = Noised(clean, eps, source.schedule, source.prompt)
        return noised, self._beside(z, noised, level)

    def advance(self, z: Tensor, source: Trajectory, level: int, seen: Sequence[Seen], cover: Tensor | None) -> Tensor:
        schedule = source.schedule
        (s, size), (after, _), (_, whole) = (schedule.flow(k) for k in (level, level - 1, 0))
        moves = []
        for one in seen:
            q = one.source.at(level)
            target = schedule.velocity(one.latents, one.guided, level)
            own = schedule.velocity(q, one.source_output, level)
            move = (after - s) * (target - own) + (one.latents - self._beside(z, one.source, level)) / size
            if self.pull:
                move = move + self.pull * ((q - one.latents) / size - s * (own - target))
            moves.append(move)
        move = whole * sum(moves) / len(moves)
        return z + (move if cover is None else cover * move)

    def after(self, level: int) -> int:
        return 0

    @staticmethod
    def _beside(z: Tensor, noised: Trajectory, level: int) -> Tensor:
        """The edit in the noise of the source: p = q + (z - x0), each divided by the size of its level."""
        (_, size), (_, whole) = noised.schedule.flow(level), noised.schedule.flow(0)
        return noised.at(level) + size / whole * (z - noised.at(0))


def coupled_edit(
    backbone: Backbone,
    latents: Tensor,
    source: Prompt,
    target: Prompt,
    *,
    solver: CoupledFlow = CoupledFlow(),
    negative: Prompt | None = None,
    plan: EditPlan = PLAIN,
    mask: Tensor | None = None,
    steps: int = 50,
    **how,
) -> Tensor:
    """The edited clip, from the source itself.

    Args:
        latents: the clip as `backbone.codec.encode` gives it.
        source, target: describe the clip as it is and as it should be, best in the same words but for the edit.
        negative: what guidance moves away from; by default the empty text. FlowAlign takes the source's prompt.
        mask: [F or 1, H, W] of what to edit: outside it the latents stay as they are, to the bit.
        how: guidance, seed and the like of `edit`.

    Raises:
        ValueError: what `edit` refuses, or a mask beside a plan with regions, which have masks of their own.
    """
    negative = backbone.text.embed("") if negative is None else negative
    if mask is not None:
        if plan.regions:
            raise ValueError("the plan has regions, each with a mask of its own: leave out the mask of the whole edit")
        plan = replace(plan, regions=(Region(target, mask=mask),))
    trajectory = source_of(backbone, latents, source, steps)
    made = edit(backbone, trajectory, target, negative=negative, plan=plan, solver=solver, **how)
    (picture, beside), (edited, _) = parts_of(backbone, latents), parts_of(backbone, made)
    unmoved = backbone.codec.unscale(trajectory.at(0))  # scaling there and back rounds: only what moved is added
    return rejoined(backbone, ordinary(picture).cpu() + (edited - unmoved), beside)
