"""How a method looks into the network without changing anything: by a forward pass that stops once it has seen enough.

A look happens under the plan of the edit, so that what is seen is what the edit is made of.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from .call import Attend, Call, Evaluation, Features
from .plan import Control, EditPlan, Slot
from .words import Block, Row, Site


class _Enough(Exception):
    """Raised inside a forward pass once everything wanted has been seen."""


@dataclass(frozen=True, eq=False)
class _CallReader(Control):
    slot: ClassVar[Slot] = "inject"
    looks_only: ClassVar[bool] = True

    wanted: frozenset[str]
    row: Row
    frames: tuple[int, ...]
    stops: bool  # once it has seen enough
    calls: dict[str, Call] = field(default_factory=dict)

    def looks_at(self, place: Site | Block) -> bool:
        return isinstance(place, Site) and place.layer in self.wanted

    def attention(self, call: Call, attend: Attend) -> Tensor:
        layer = call.site.layer
        # A pass that a control makes for itself has other rows or frames: it is not the one looked for.
        if layer in self.wanted and layer not in self.calls and self.row in call.rows and call.frames == self.frames:
            self.calls[layer] = call.only(self.row)
            if self.stops and len(self.calls) == len(self.wanted):
                raise _Enough
        return attend(call)


def read_calls(
    evaluate: Callable[[Evaluation, EditPlan], Tensor],
    evaluation: Evaluation,
    plan: EditPlan,
    row: Row,
    layers: Collection[str],
) -> Mapping[str, Call]:
    """The calls at `layers` as the layers themselves project them for one row, before any control changes them.

    Differentiable in `evaluation.latents` where gradients are enabled. Blocks that are to be evaluated again in the
    backward pass must end as they began: then the pass goes on to its end.

    Raises:
        ValueError: a layer was never called, so it is not an attention site of this model.
    """
    reader = _CallReader(frozenset(layers), row, evaluation.frames, not evaluation.recompute)
    try:
        evaluate(evaluation, EditPlan((reader, *plan.controls)))
    except _Enough:
        return reader.calls
    if len(reader.calls) == len(reader.wanted):
        return reader.calls
    raise ValueError(f"the model has no attention at {sorted(reader.wanted - set(reader.calls))}")


@dataclass(frozen=True, eq=False)
class _FeatureReader(Control):
    wanted: Block
    read: list[Tensor] = field(default_factory=list)

    def feature(self, features: Features) -> Tensor:
        if features.block == self.wanted:
            self.read.append(features.x)
            raise _Enough
        return features.x


def read_feature(
    evaluate: Callable[[Evaluation, EditPlan], Tensor], evaluation: Evaluation, plan: EditPlan, block: Block
) -> Tensor:
    """[R, F, C, h, w] out of one block."""
    reader = _FeatureReader(block)
    try:
        evaluate(evaluation, EditPlan((*plan.controls, reader)))
    except _Enough:
        return reader.read[0]
    raise ValueError(f"the model has no block '{block.name}'")
