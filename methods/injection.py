"""Feature injection: in the first steps, the edit takes its layout from the source.

paper    Plug-and-play diffusion features, Tumanyan et al. 2023; used by TokenFlow (Geyer et al. 2023), FLATTEN (Cong et
         al. 2023) and COVE (Wang et al. 2024), which save features for "the first 40 timesteps" of 50
needs    a model with a decoder; the source's trajectory
gives    a Control that replaces the edit's residual features, and its queries and keys, by the source's
differs  the source runs as one more row beside the edit and nothing is stored; the papers keep gigabytes

Queries and keys say which tokens look at which: with the source's, the edit keeps the source's layout. The values stay
the edit's own. The source's row is never changed, so a plan may also guide an inversion, where this does nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from torch import Tensor

from ..engine.call import Attend, Call, Features
from ..engine.plan import Control, Needs, Slot
from ..engine.words import Block, Model, Site

Places = Literal["plug_and_play", "flatten"]
FLATTEN_RESIDUALS = ((0, 0), (0, 1), (1, 0))  # up1.res0, up1.res1 and up2.res0 of Stable Diffusion


@dataclass(frozen=True)
class FeatureInjection(Control):
    """The source's features in the first steps.

    Args:
        feature_steps: steps, from the first, in which residual features are the source's. With 50 steps, 40 in
            TokenFlow, FLATTEN and COVE. More than the run has means all.
        attention_steps: the same for queries and keys of self-attention: 25 in TokenFlow, 40 in FLATTEN and COVE.
            With both 0 this is the plain edit bit for bit.
            A transformer has no such blocks: there attention alone is injected, in the second half of its layers.
        places: "plug_and_play": the second residual block of the decoder's first stage with attention, and all its
            self-attention but the first (as TokenFlow); "flatten": the first two residual blocks there and the first
            of the next stage, and of the finest stage only the first self-attention (as FLATTEN, which COVE follows).

    Raises:
        ValueError: a negative number of steps, an unknown choice; when sampling, a model without such places.
    """

    slot: ClassVar[Slot] = "inject"

    feature_steps: int = 40
    attention_steps: int = 40
    places: Places = "plug_and_play"

    def __post_init__(self):
        for name in ("feature_steps", "attention_steps"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be 0 or more steps, got {getattr(self, name)}; 0 injects nothing")
        if self.places not in get_args(Places):
            raise ValueError(f"no places '{self.places}': want one of {', '.join(get_args(Places))}")

    def needs(self) -> Needs:
        return Needs(source=self.feature_steps > 0 or self.attention_steps > 0)

    def acts_at(self, seam: str) -> bool:
        idle = {"attention": self.attention_steps == 0, "feature": self.feature_steps == 0}
        return not idle.get(seam, False) and super().acts_at(seam)

    def fits(self, model: Model) -> None:
        if self.attention_steps == 0 and self.feature_steps and not any(self.injects(b) for b in model.blocks):
            raise ValueError(f"'{model.name}' has no residual blocks to inject: set attention_steps")
        if not any(self.injects(site) for site in model.sites):
            raise ValueError(
                f"'{model.name}' has no decoder with two attention layers: features cannot be injected into it"
            )

    def looks_at(self, place: Site | Block) -> bool:
        return self.injects(place)

    def injects(self, place: Site | Block) -> bool:
        """Whether this attention layer, or this residual block, gets what the source has there."""
        if isinstance(place, Site) and place.kind == "joint":
            return place.half == "decoder"
        if place.place is None:
            return False
        if isinstance(place, Block):
            wanted = FLATTEN_RESIDUALS if self.places == "flatten" else FLATTEN_RESIDUALS[1:2]
            return place.kind == "residual" and place.place in wanted
        wanted = self.places == "plug_and_play" or place.level > 0 or place.place[1] == 0
        return place.kind == "spatial" and place.place != (0, 0) and wanted

    def attention(self, call: Call, attend: Attend) -> Tensor:
        if call.run.step < self.attention_steps and self.injects(call.site):
            call = call.mapped(call.source)
        return attend(call)

    def feature(self, features: Features) -> Tensor:
        if features.run.step < self.feature_steps and self.injects(features.block):
            return features.source.expand_as(features.x)
        return features.x
