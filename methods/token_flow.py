"""TokenFlow: keyframes are edited together, and the other frames take their tokens along the source's motion.

paper    TokenFlow, Geyer et al. 2023 (arXiv 2307.10373); its released program
needs    an image model; the source's trajectory
gives    a Control that wraps a step's evaluation and rewrites self-attention
differs  any number of frames (released: a multiple of the batch); the source's row attends to its own frame in the
         keyframe pass and nowhere else, as released; `blend="linear"` is ours

At every step one keyframe is drawn from each batch of frames. All keyframes are evaluated together, and in the edit's
rows each attends to all of them. Then every frame is evaluated without self-attention of its own: each of its tokens
takes what the nearest token of its batch's keyframe got there, and that of the batch before; nearest by the cosine of
the source's normalised tokens, so the edit moves as the source does. The two are mixed by how far their batches are:

    out = w O_m[nearest] + (1 - w) O_(m-1)[nearest],    w = sigmoid(d_(m-1) / (d_m + d_(m-1)))
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from ..engine.call import Attend, Call, Evaluation, joined_rows
from ..engine.plan import Control, EditPlan, Needs, Slot
from ..engine.seeds import generator_for
from ..kernels import Pairs, nearest
from .injection import FeatureInjection

Blend = Literal["sigmoid", "linear"]


@dataclass(frozen=True)
class Asks:
    """What some frames ask of the keyframes: each its batch's, then those that have one the batch's before."""

    pairs: Pairs
    own: int  # frames, and how many of the pairs are theirs
    keyframes: Tensor  # [P] of each pair
    later: Tensor  # [P - own] positions of the frames that have a batch before
    weights: Tensor  # [P - own, 1, 1, 1] of their own keyframe


@dataclass(frozen=True)
class Keyframes:
    """What the keyframes of one step hold for the other frames. It lives in that step's evaluation."""

    frames: int  # of the clip
    gathering: bool  # whether this is the keyframes' own pass
    # of a layer and some rows: source tokens [M, n, C], out [R, M, H, n, D]
    held: dict[tuple, tuple[Tensor, Tensor]] = field(default_factory=dict)
    asks: dict[tuple, Asks] = field(default_factory=dict)  # by frames: made once, not a layer


@dataclass(frozen=True)
class TokenFlow(Control):
    """Keyframes edited together, and their tokens carried to the other frames.

    It is released with the source's features injected: see `with_injection`.

    Args:
        batch: frames that share a keyframe, at least 1; 8. The last batch may be shorter.
        blend: "sigmoid" as released, whose w lies in 0.5..0.73; "linear" drops the sigmoid, so that a frame in the
            middle of its batch takes nothing from the batch before.
        seed: which frame of each batch is the keyframe; drawn anew at every step.

    Raises:
        ValueError: a number out of range or an unknown choice; when sampling, a model whose frames see each other.
    """

    slot: ClassVar[Slot] = "output"
    title: ClassVar[str] = "TokenFlow"

    batch: int = 8
    blend: Blend = "sigmoid"
    seed: int = 0

    def __post_init__(self):
        if self.batch < 1:
            raise ValueError(f"want batches of 1 or more frames, got {self.batch}")
        if self.blend not in get_args(Blend):
            raise ValueError(f"no blend '{self.blend}': want one of {', '.join(get_args(Blend))}")

    def needs(self) -> Needs:
        return Needs(source=True, picks_frames=True, framewise=True, keys="frames")

    def evaluate(self, evaluation: Evaluation, evaluate: Callable[[Evaluation], Tensor]) -> Tensor:
        if all(row.of_source for row in evaluation.rows):
            return evaluate(evaluation)  # an inversion: nothing to propagate
        keyframes = Keyframes(evaluation.latents.shape[1], gathering=True)
        at = self.keyframes(keyframes.frames, evaluation.run.step)
        evaluate(replace(evaluation.select(at), whole=True).share(self, keyframes))
        return evaluate(evaluation.share(self, replace(keyframes, gathering=False)))

    def keyframes(self, frames: int, step: int) -> list[int]:
        """One frame of each batch; the last batch may be shorter."""
        generator = generator_for(self.seed, step)
        starts = range(0, frames, self.batch)
        return [s + int(torch.randint(min(self.batch, frames - s), (), generator=generator)) for s in starts]

    def attention(self, call: Call, attend: Attend) -> Tensor:
        keyframes = call.run.shared.get(self)
        if keyframes is None or call.site.kind != "spatial":
            return attend(call)
        if not keyframes.gathering:
            return self._carried(call, keyframes)
        out = _together(call, attend)
        keyframes.held[call.site.layer, call.rows] = call.source.tokens[0], out
        return out

    def _carried(self, call: Call, keyframes: Keyframes) -> Tensor:
        """[R, F, H, n, D]: what the keyframes' attention gave, at the nearest tokens."""
        there, out = keyframes.held[call.site.layer, call.rows]
        key = call.frames, out.dtype, out.device
        if key not in keyframes.asks:
            keyframes.asks[key] = self._asks(call.frames, keyframes.frames, out)
        asks = keyframes.asks[key]
        found = out.index_select(1, asks.keyframes)
        places = nearest(call.source.tokens[0], there, asks.pairs)[None, :, None, :, None]
        found = found.gather(3, places.expand(*found.shape[:3], -1, found.shape[4]))
        taken, before = found[:, : asks.own], found[:, asks.own :]
        if not before.shape[1]:
            return taken
        mixed = torch.lerp(before, taken.index_select(1, asks.later), asks.weights)
        return taken.index_copy(1, asks.later, mixed)

    def _asks(self, frames: tuple[int, ...], clip: int, like: Tensor) -> Asks:
        own = [frame // self.batch for frame in frames]
        later = [i for i, m in enumerate(own) if m > 0]
        pairs = [*enumerate(own), *((i, own[i] - 1) for i in later)]
        weights = torch.tensor([self.weight(frames[i], clip) for i in later], dtype=like.dtype, device=like.device)
        sets = [m for _, m in pairs]
        keyframes, later = (torch.tensor(x, dtype=torch.long, device=like.device) for x in (sets, later))
        return Asks(Pairs(pairs, like.device), len(own), keyframes, later, weights[:, None, None, None])

    def weight(self, frame: int, frames: int) -> float:
        """Of the keyframe of a frame's own batch, against that of the batch before."""
        m = frame // self.batch
        own, before = (abs(frame - self._middle(i, frames)) for i in (m, m - 1))
        share = before / (own + before)
        return share if self.blend == "linear" else 1 / (1 + math.exp(-share))

    def _middle(self, m: int, frames: int) -> int:
        start = m * self.batch
        return start + min(self.batch, frames - start) // 2


def with_injection(
    plan: EditPlan, token_flow: TokenFlow, *, feature_steps: int = 40, attention_steps: int = 25
) -> EditPlan:
    """`plan` with TokenFlow, over the feature injection that it is released with.

    Args:
        feature_steps, attention_steps: of `FeatureInjection`; the released program takes 40 and 25 of 50 steps. With
            both 0 there is no injection.
    """
    if feature_steps or attention_steps:
        plan = plan.then(FeatureInjection(feature_steps, attention_steps))
    return plan.then(token_flow)


def _together(call: Call, attend: Attend) -> Tensor:
    """Attention in which frames of the edit's rows see all frames, and those of the source's rows their own."""
    own, edit = ([row for row in call.rows if row.of_source is of_source] for of_source in (True, False))
    parts = {}
    for rows, some in (
        (own, call.only(*own) if own else None),
        (edit, call.only(*edit).seeing_all() if edit else None),
    ):
        if some is not None:
            parts |= dict(zip(rows, attend(some).split(1)))
    return joined_rows(call.rows, parts)
