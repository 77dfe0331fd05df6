"""The attention of models whose tokens all see each other (Wan, LTX-Video, HunyuanVideo, CogVideoX), as STR-Match reads
it: as a spatial and a temporal one (D1 of our notes on the paper), or as the full 3-D map it is (D4).

paper    STR-Match, Lee et al. 2025, section 4 and appendix: on CogVideoX; how it reads 3-D attention it does not say
needs    sites of kind "joint"
gives    pairs of calls, and row statistics
differs  both are readings of ours. The first has the very quantities that spatial and temporal layers would give: each
         softmax over its own axis alone. Rotary parts of the other axis cancel in it
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from einops import rearrange
from torch import Tensor

from ..engine.call import Call
from ..engine.words import Site
from ..kernels.str_loss.full import str_rows_full


def chosen_layers(sites: Sequence[Site], every: bool) -> list[Site]:
    """Joint sites to read: all, or every second of the middle half. None of them is finer than another."""
    joint = [site for site in sites if site.kind == "joint"]
    if every or len(joint) < 4:
        return joint
    return joint[len(joint) // 4 : len(joint) - len(joint) // 4 : 2]


def factorised(call: Call) -> tuple[Call, Call]:
    """The call as a spatial one [R, F, H, N, D], and a temporal one [R, N, H, F, D]."""
    frames, height, width = call.grid
    size = {"f": frames, "n": height * width}
    q, k = call.q[:, 0], call.k[:, 0, :, : frames * height * width]
    spatial, temporal = (
        [rearrange(x, f"r h (f n) d -> {form}", **size) for x in (q, k)] for form in ("r f h n d", "r n h f d")
    )
    return (
        replace(call, q=spatial[0], k=spatial[1], bias=None, beside=None),
        replace(call, q=temporal[0], k=temporal[1], bias=None, beside=None),
    )


def full_rows(source: Call, target: Call, neighbours: int, per_head: bool) -> Tensor:
    """Row statistics of the scores of two calls of one row each, from their full maps."""
    return str_rows_full(
        source.q[0, 0],
        source.k[0, 0],
        target.q[0, 0],
        target.k[0, 0],
        target.grid[0],
        neighbours=neighbours,
        scale=target.scale,
        per_head=per_head,
        bias_src=_bias(source),
        bias_tgt=_bias(target),
    )


def _bias(call: Call) -> Tensor | None:
    """[L] of what hides a text's padding, the same for every query and head."""
    return None if call.bias is None else call.bias[0, 0, 0, 0]
