"""Spatio-temporal attention: every frame looks at all frames of the clip.

paper    Tune-A-Video, Wu et al. 2023, in the dense form that FLATTEN and COVE keep ("all tokens in the video serve as
         keys and values", COVE, section 3.3)
needs    an image model
gives    a Control at its spatial self-attention
differs  nothing: it is exact
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..engine.call import Attend, Call
from ..engine.plan import Control, Needs, Slot


@dataclass(frozen=True)
class SpatioTemporalAttention(Control):
    """Spatial self-attention over the clip.

    Args:
        frames: a frame looks at itself and so many on each side; 0: at all, as the papers do. On long clips this
            bounds the time, which grows with the square of the frames otherwise.

    Raises:
        ValueError: a negative number; when sampling, chunks of frames.
    """

    slot: ClassVar[Slot] = "keys"
    title: ClassVar[str] = "Spatio-Temporal Attention"

    frames: int = 0

    def __post_init__(self):
        if self.frames < 0:
            raise ValueError(f"want 0 (all frames) or more frames on each side, got {self.frames}")

    def needs(self) -> Needs:
        return Needs(all_frames=True, keys="frames")

    def attention(self, call: Call, attend: Attend) -> Tensor:
        if call.site.kind != "spatial":
            return attend(call)
        if not self.frames:
            return attend(call.seeing_all())
        count = call.q.shape[1]
        near = [range(max(0, f - self.frames), min(count, f + self.frames + 1)) for f in range(count)]
        return attend(call.seeing(near))
