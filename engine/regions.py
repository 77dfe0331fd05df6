"""The regions of an edit, ready to run: what each evaluates, and how their outputs become one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from .plan import EditPlan, Region
from .source import Trajectory
from .words import Layout, Prompt, Role, Row

Inputs = dict[Row, tuple[Tensor, Prompt]]  # row -> (its latents [F, C, h, w], its prompt)


@dataclass(frozen=True, eq=False)
class Part:
    """One region with the prompts and the plan that it runs under."""

    index: int
    positive: Prompt
    negative: Prompt
    plan: EditPlan
    weight: Tensor | None  # [F or 1, 1, h, w] in 0..1, how far each cell is its edit; None: everywhere, fully


@dataclass(frozen=True, eq=False)
class Parts:
    """All regions of an edit, in order."""

    parts: tuple[Part, ...]
    roles: tuple[Role, ...]  # of the edit, that guidance evaluates
    guidance: float
    image_guidance: float

    def __iter__(self):
        return iter(self.parts)

    @cached_property
    def groups(self) -> tuple[tuple[Part, ...], ...]:
        """Regions under one and the same plan: they are evaluated together."""
        alike: dict[tuple[int, ...], list[Part]] = {}
        for part in self.parts:
            alike.setdefault(tuple(map(id, part.plan.controls)), []).append(part)
        return tuple(map(tuple, alike.values()))

    @property
    def prompts(self) -> list[Prompt]:
        return [prompt for part in self.parts for prompt in (part.positive, part.negative)]

    @cached_property
    def total(self) -> Tensor | None:
        """[F or 1, 1, h, w] the sum of all weights; None: everywhere, fully."""
        weights = [part.weight for part in self.parts]
        return None if any(w is None for w in weights) else sum(weights)

    @property
    def cover(self) -> Tensor | None:
        """[F or 1, 1, h, w] in 0..1: what is edited at all. None: everything."""
        return None if self.total is None else self.total.clamp(max=1)

    def rows(self, group: Sequence[Part], latents: Tensor) -> Inputs:
        """What guidance evaluates for some regions; rows with one role and prompt are evaluated once."""
        rows: Inputs = {}
        for part in group:
            for role in self.roles:
                prompt = part.positive if role == "positive" else part.negative
                if role == "positive" or _twin(rows, role, prompt) is None:
                    rows[Row(role, part.index)] = latents, prompt
        return rows

    def guided(self, group: Sequence[Part], rows: Inputs, output: Mapping[Row, Tensor]) -> Tensor:
        """What some regions add to the guided output [F, C, h, w]."""
        total = None
        for part in group:
            positive = output[Row("positive", part.index)]
            others = {role: output[_twin(rows, role, part.negative)] for role in self.roles if role != "positive"}
            guided = self._combined(positive, others)
            if self.total is not None and len(self.parts) > 1:
                guided = guided * (part.weight / self.total.clamp(min=1e-6)).to(guided)
            total = guided if total is None else total + guided
        return total

    def _combined(self, positive: Tensor, others: Mapping[Role, Tensor]) -> Tensor:
        """Classifier-free guidance, and that of InstructPix2Pix (Brooks et al. 2023, equation 3)."""
        if "negative" in others:
            positive = others["negative"] + self.guidance * (positive - others["negative"])
        if "unconditional" in others:
            positive = positive + (self.image_guidance - 1) * (others["negative"] - others["unconditional"])
        return positive


def parts_of(
    plan: EditPlan,
    trajectory: Trajectory,
    layout: Layout,
    positive: Prompt,
    negative: Prompt,
    guidance: float,
    image_guidance: float,
) -> Parts:
    """The regions of a plan, or the one that is the whole picture.

    Raises:
        ValueError: masks that are not of this clip, or more than one region without a mask.
    """
    regions = plan.regions or (Region(positive, negative),)
    weights = _weights(regions, trajectory.at(0), layout)
    parts = [
        Part(i, r.positive, negative if r.negative is None else r.negative, plan.of_region(r), weight)
        for i, (r, weight) in enumerate(zip(regions, weights))
    ]
    return Parts(tuple(parts), role_rows(guidance, image_guidance), guidance, image_guidance)


def role_rows(guidance: float, image_guidance: float) -> tuple[Role, ...]:
    """What classifier-free guidance at these scales evaluates."""
    if image_guidance != 1:
        return ("unconditional", "negative", "positive")
    return ("negative", "positive") if guidance != 1 else ("positive",)


def _weights(regions: Sequence[Region], clip: Tensor, layout: Layout) -> list[Tensor | None]:
    size = clip.shape[-2:]
    for region in regions:
        if region.mask is not None:
            layout.require_mask(region.mask, clip)
    masks = [None if r.mask is None else layout.cells(r.mask, size) for r in regions]
    rest = [i for i, mask in enumerate(masks) if mask is None]
    if len(rest) > 1:
        raise ValueError(
            f"{len(rest)} regions have no mask, and only one can be all that the others leave: give the others masks"
        )
    if len(regions) == 1 and rest and regions[0].strength == 1:
        return [None]
    if rest:
        covered = sum((m for m in masks if m is not None), torch.zeros(1, 1, *size)).clamp(max=1)
        masks[rest[0]] = 1 - covered
    return [region.strength * mask for region, mask in zip(regions, masks)]


def _twin(rows: Inputs, role: Role, prompt: Prompt) -> Row | None:
    """The row that evaluates this role and prompt already."""
    return next((row for row, (_, other) in rows.items() if row.role == role and _alike(other, prompt)), None)


def _alike(a: Prompt, b: Prompt) -> bool:
    """Whether two prompts say the same to the network."""
    if a is b or a.cond is b.cond:
        return True
    if (a.encoder, a.text, a.frames) != (b.encoder, b.text, b.frames) or a.cond.keys() != b.cond.keys():
        return False
    tensors = all(isinstance(x, Tensor) for cond in (a.cond, b.cond) for x in cond.values())
    return tensors and all(torch.equal(a.cond[name], b.cond[name]) for name in a.cond)
