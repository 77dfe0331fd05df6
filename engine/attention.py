"""How controls nest at one attention call, and how a method reads queries and keys without changing anything."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import Tensor

from .nouns import Attend, AttentionCall, Control, Evaluation

if TYPE_CHECKING:
    from ..backbones.protocol import Backbone


def attend_with(controls: Sequence[Control], call: AttentionCall, attend: Attend) -> Attend:
    """`attend` wrapped in `controls`; the first is outermost."""
    for control in reversed(controls):
        attend = _wrap(control, call, attend)
    return attend


def _wrap(control: Control, call: AttentionCall, attend: Attend) -> Attend:
    return lambda q, k, v: control.attention(call, q, k, v, attend)


@dataclass(frozen=True)
class Reading:
    """Queries and keys of one attention call, [R, G, H, M, D] each, and the scale of their logits."""

    q: Tensor
    k: Tensor
    scale: float


class _Enough(Exception):
    """Raised inside a forward pass once everything wanted has been read."""


@dataclass(frozen=True)
class _Reader(Control):
    wanted: frozenset[str]
    readings: dict[str, Reading] = field(default_factory=dict)

    def attention(self, call, q, k, v, attend):
        if call.site.layer in self.wanted:
            self.readings[call.site.layer] = Reading(q, k, call.scale)
            if len(self.readings) == len(self.wanted):
                raise _Enough
        return attend(q, k, v)


def read_attention(backbone: Backbone, evaluation: Evaluation, layers: Collection[str]) -> dict[str, Reading]:
    """Queries and keys at `layers`, by one forward pass that stops after the last of them.

    Differentiable in `evaluation.latents` where gradients are enabled.

    Raises:
        ValueError: a layer was never called, so it is not an attention site of this model.
    """
    reader = _Reader(frozenset(layers))
    try:
        backbone.predict(evaluation, (reader,))
    except _Enough:
        return reader.readings
    missing = sorted(reader.wanted - set(reader.readings))
    raise ValueError(f"model '{backbone.name}' has no attention at {missing}")
