"""What the STR score is made of: which layers stand side by side, and their queries, keys and temporal maps.

paper    STR-Match, Lee et al. 2025, section 3 and equations 2-4
needs    a model with spatial and temporal self-attention side by side, or with attention over the whole clip at once
gives    what `kernels.str_rows` and `str_score` take
differs  of a block with two temporal layers the first counts; which layers an attention over the whole clip stands for
         is our reading (`str_match`)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from einops import rearrange
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..engine.call import Call
from ..engine.words import Model, Site

Levels = Literal["all_but_finest", "all"]
Pair = tuple[Call, Call]  # the spatial and the temporal call of one block, of one row
Inputs = tuple[Tensor, Tensor, Tensor]  # of the score: see `score_inputs`


def site_pairs(model: Model, levels: Levels = "all_but_finest") -> list[tuple[Site, Site]]:
    """Spatial self-attention sites with the temporal one of the same block, in running order; a site that attends over
    the whole clip at once is both. Such models have no finest level: for them "all_but_finest" is every second layer of
    the middle half.

    Raises:
        ValueError: the model has no such pair at these levels.
    """
    temporal: dict[str, Site] = {}
    for site in model.sites:
        if site.kind == "temporal":
            temporal.setdefault(site.block, site)  # of two temporal layers in a block, the first (the paper has one)
    joint = [(s, s) for s in model.sites if s.kind == "joint"]
    if joint:
        return joint if levels == "all" else joint[len(joint) // 4 : len(joint) - len(joint) // 4 : 2]
    pairs = [(s, temporal[s.block]) for s in model.sites if s.kind == "spatial" and s.block in temporal]
    if not pairs:
        raise ValueError(
            f"'{model.name}' has no spatial attention with temporal attention beside it: STR-Match wants a "
            "text-to-video model"
        )
    if levels == "all":
        return pairs
    coarse = [pair for pair in pairs if pair[0].level > 0]
    if not coarse:
        raise ValueError(f"'{model.name}' has attention at the finest level only: choose levels 'all'")
    return coarse


def paired(pairs: Sequence[tuple[Site, Site]], calls: Mapping[str, Call]) -> list[Pair]:
    """The calls at pairs of sites, as pairs."""
    return [(calls[spatial.layer], calls[temporal.layer]) for spatial, temporal in pairs]


def score_inputs(pair: Pair, per_head: bool) -> Inputs:
    """(q, k [F, H, N, D], temporal maps [N, F, F] or [H, N, F, F]) of one clip."""
    spatial, temporal = pair
    return *over(spatial, "spatial"), temporal_maps(temporal, per_head)


def over(call: Call, kind: str) -> tuple[Tensor, Tensor]:
    """q, k of one clip as spatial attention [F, H, N, D] or as temporal one [N, H, F, D] has them."""
    if call.site.kind != "joint":
        return call.q[0], call.k[0]
    frames, h, w = call.grid
    to = "h (f n) d -> f h n d" if kind == "spatial" else "h (f n) d -> n h f d"
    return tuple(rearrange(x[0, 0, :, -frames * h * w :], to, f=frames) for x in (call.q, call.k))


def temporal_maps(call: Call, per_head: bool) -> Tensor:
    """[H, N, F, F] softmax maps in float32, with what the layer adds to its logits, or [N, F, F], their mean over the
    heads. What they are made of in float32, twice the network's own, is made again in the backward pass."""
    own = call.bias is not None and call.site.kind != "joint"  # there it hides a text's padding, which is not in these

    def maps(q: Tensor, k: Tensor) -> Tensor:
        q, k = (x.float() if x.dtype in (torch.float16, torch.bfloat16) else x for x in (q, k))
        logits = q @ k.transpose(-1, -2) * call.scale
        maps = (logits + call.bias[0].to(logits) if own else logits).softmax(-1)
        return maps.transpose(0, 1) if per_head else maps.mean(1)

    return checkpoint(maps, *over(call, "temporal"), use_reentrant=False, preserve_rng_state=False)
