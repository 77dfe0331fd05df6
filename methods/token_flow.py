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
from typing import TYPE_CHECKING, ClassVar, Literal, get_args

import torch
from einops import rearrange
from torch import Tensor

from ..engine.nouns import Attend, AttentionCall, Control, EditPlan, Evaluation, Trajectory
from ..engine.seeds import generator_for
from ..kernels import nearest
from .injection import feature_injection

if TYPE_CHECKING:
    from ..backbones.protocol import Backbone

Blend = Literal["sigmoid", "linear"]


@dataclass(frozen=True)
class Keyframes:
    """What the keyframes of one step hold for the other frames. It lives in that step's evaluation."""

    frames: int  # of the clip
    gathering: bool  # whether this is the keyframes' own pass
    held: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)  # source tokens [M, n, C], out [R, M, H, n, D]


@dataclass(frozen=True)
class TokenFlow(Control):
    """See `token_flow`."""

    needs_source: ClassVar[bool] = True

    batch: int = 8
    blend: Blend = "sigmoid"
    seed: int = 0

    def __post_init__(self):
        if self.batch < 1:
            raise ValueError(f"want batches of 1 or more frames, got {self.batch}")
        if self.blend not in get_args(Blend):
            raise ValueError(f"no blend '{self.blend}': want one of {', '.join(get_args(Blend))}")

    def check(self, trajectory: Trajectory, backbone: Backbone) -> None:
        if not backbone.framewise:
            raise ValueError(
                f"TokenFlow picks single frames, and '{backbone.name}' looks at all frames together: use an image model"
            )

    def evaluate(self, evaluation: Evaluation, evaluate: Callable[[Evaluation], Tensor]) -> Tensor:
        if set(evaluation.rows) == {"source"}:
            return evaluate(evaluation)  # an inversion: nothing to propagate
        keyframes = Keyframes(evaluation.latents.shape[1], gathering=True)
        at = self.keyframes(keyframes.frames, evaluation.step)
        evaluate(replace(evaluation.select(at), whole=True).share(self, keyframes))
        return evaluate(evaluation.share(self, replace(keyframes, gathering=False)))

    def keyframes(self, frames: int, step: int) -> list[int]:
        """One frame of each batch; the last batch may be shorter."""
        generator = generator_for(self.seed, step)
        starts = range(0, frames, self.batch)
        return [s + int(torch.randint(min(self.batch, frames - s), (), generator=generator)) for s in starts]

    def attention(self, call: AttentionCall, q: Tensor, k: Tensor, v: Tensor, attend: Attend) -> Tensor:
        keyframes = call.evaluation.shared.get(self)
        if keyframes is None or call.site.kind != "spatial":
            return attend(q, k, v)
        if not keyframes.gathering:
            return self._carried(call, keyframes)
        out = _together(call.row("source"), q, k, v, attend)
        keyframes.held[call.site.layer] = _source(call), out
        return out

    def _carried(self, call: AttentionCall, keyframes: Keyframes) -> Tensor:
        """[R, F, H, n, D]: what the keyframes' attention gave, at the nearest tokens."""
        there, out = keyframes.held[call.site.layer]
        here, frames = _source(call), call.evaluation.frames
        own = [frame // self.batch for frame in frames]
        later = [i for i, m in enumerate(own) if m > 0]  # those with a batch before
        places = nearest(here, there, [*enumerate(own), *((i, own[i] - 1) for i in later)])
        taken = _at(out, own, places[: len(own)])
        if later:
            before = _at(out, [own[i] - 1 for i in later], places[len(own) :])
            weights = [self.weight(frames[i], keyframes.frames) for i in later]
            weights = torch.tensor(weights, dtype=out.dtype, device=out.device)[:, None, None, None]
            taken[:, later] = torch.lerp(before, taken[:, later], weights)
        return taken

    def weight(self, frame: int, frames: int) -> float:
        """Of the keyframe of a frame's own batch, against that of the batch before."""
        m = frame // self.batch
        own, before = (abs(frame - self._middle(i, frames)) for i in (m, m - 1))
        share = before / (own + before)
        return share if self.blend == "linear" else 1 / (1 + math.exp(-share))

    def _middle(self, m: int, frames: int) -> int:
        start = m * self.batch
        return start + min(self.batch, frames - start) // 2


def token_flow(plan: EditPlan, *, feature_steps: int = 40, attention_steps: int = 25, **numbers) -> EditPlan:
    """`plan` with TokenFlow, over the feature injection that it is released with.

    Args:
        feature_steps, attention_steps: of `feature_injection`; the released program takes 40 and 25 of 50 steps. With
            both 0 there is no injection.
        batch: frames that share a keyframe, at least 1; 8. The last batch may be shorter.
        blend: "sigmoid" as released, whose w lies in 0.5..0.73; "linear" drops the sigmoid, so that a frame in the
            middle of its batch takes nothing from the batch before.
        seed: which frame of each batch is the keyframe; drawn anew at every step.

    Raises:
        ValueError: a number out of range or an unknown choice; when sampling, a model whose frames see each other.
    """
    if feature_steps or attention_steps:
        plan = feature_injection(plan, feature_steps=feature_steps, attention_steps=attention_steps)
    return plan.then(TokenFlow(**numbers))


def _together(source: int, q: Tensor, k: Tensor, v: Tensor, attend: Attend) -> Tensor:
    """Attention in which frames of the edit's rows see all frames, and those of the source's row their own."""
    edits = [r for r in range(len(q)) if r != source]
    joined = (rearrange(x[edits], "r f h n d -> r 1 h (f n) d") for x in (q, k, v))
    out = torch.empty_like(v)
    out[source] = attend(*(x[source : source + 1] for x in (q, k, v)))[0]
    out[edits] = rearrange(attend(*joined), "r 1 h (f n) d -> r f h n d", f=q.shape[1])
    return out


def _source(call: AttentionCall) -> Tensor:
    """[F, n, C]: the source's tokens as the layer takes them."""
    return call.tokens[call.row("source")]


def _at(out: Tensor, keyframes: list[int], places: Tensor) -> Tensor:
    """[R, P, H, n, D]: of some keyframes of out [R, M, H, m, D] the tokens at places [P, n]."""
    out = out[:, keyframes]
    return out.gather(3, places[None, :, None, :, None].expand(*out.shape[:3], -1, out.shape[4]))
