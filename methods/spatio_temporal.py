"""Spatio-temporal attention: every frame looks at all frames of the clip.

paper    Tune-A-Video, Wu et al. 2023, in the dense form that FLATTEN and COVE keep ("all tokens in the video serve as
         keys and values", COVE, section 3.3)
needs    an image model
gives    a Control at its spatial self-attention
differs  nothing: it is exact. One frame's queries are taken at a time, so that no more is held than for one frame
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from einops import rearrange
from torch import Tensor

from ..engine.nouns import Attend, AttentionCall, Control, EditPlan


@dataclass(frozen=True)
class SpatioTemporalAttention(Control):
    """See `spatio_temporal_attention`."""

    needs_all_frames: ClassVar[bool] = True

    frames: int = 0

    def __post_init__(self):
        if self.frames < 0:
            raise ValueError(f"want 0 (all frames) or more frames on each side, got {self.frames}")

    def attention(self, call: AttentionCall, q: Tensor, k: Tensor, v: Tensor, attend: Attend) -> Tensor:
        if call.site.kind != "spatial":
            return attend(q, k, v)
        out = []
        for frame in range(q.shape[1]):
            call.evaluation.monitor.check()
            if self.frames or not out:
                near = slice(max(0, frame - self.frames), frame + self.frames + 1) if self.frames else slice(None)
                keys, values = (rearrange(x[:, near], "r f h n d -> r 1 h (f n) d") for x in (k, v))
            out.append(attend(q[:, frame : frame + 1], keys, values))
        return torch.cat(out, 1)


def spatio_temporal_attention(plan: EditPlan, *, frames: int = 0) -> EditPlan:
    """`plan` with spatial self-attention over the clip.

    Args:
        frames: a frame looks at itself and so many on each side; 0: at all, as the papers do. On long clips this
            bounds the time, which grows with the square of the frames otherwise.

    Raises:
        ValueError: a negative number; when sampling, chunks of frames.
    """
    return plan.then(SpatioTemporalAttention(frames))
