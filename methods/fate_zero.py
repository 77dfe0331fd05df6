"""FateZero: the edit attends as the source does, but for self-attention where the edited thing is.

paper    FateZero, Qi et al. 2023 (arXiv 2303.09535); its released program
needs    a model with self- and cross-attention; the source's trajectory; prompts of a tokenizer that says its tokens
gives    a Control that wraps a step's evaluation and rewrites both kinds of attention
differs  the source's maps are recomputed beside the edit, at the edit's noise level, instead of stored (40 to 100 GB);
         no map is ever made but those of the chosen words; no latent blend (see `latent_blend`)

Only the positive row changes. With A the maps of source and edit, and V the edit's values:

    cross   out = A_new V,  A_new[:, j] = e_j (A_source[:, i(j)], or A_edit[:, j] for a new word)
    self    out = M A_edit V + (1 - M) A_source V

M is 1 where the source's cross-attention to the chosen words, over its largest value in the frame, exceeds the
threshold. Without words, or from threshold 1 on, M is 0. A_source V is one attention with the source's queries and
keys, and re-ordered columns of a map are re-ordered rows of V: so all of it is plain attention.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from ..engine.nouns import Attend, AttentionCall, Control, EditPlan, Evaluation, Trajectory
from . import words as text

if TYPE_CHECKING:
    from ..backbones.protocol import Backbone

Mapping = Literal["refine", "replace"]
KeyFrames = Literal["previous_and_first", "middle", "own"]
MASK_CELLS = 16 * 16  # the size of maps that masks are read from


@dataclass
class Watch:
    """Sums, over layers, of the source's attention to the chosen words, by level and frame of the clip."""

    at: list[int]  # positions of the words' tokens
    maps: dict[int, dict[int, Tensor]] = field(default_factory=dict)  # level -> frame -> [h, w]

    def add(self, call: AttentionCall, q: Tensor, k: Tensor) -> None:
        """q, k [F, H, N or L, D] of the source."""
        maps = (q * call.scale @ k.mT).softmax(-1, dtype=torch.float32)[..., self.at].sum(-1).mean(1)
        level = self.maps.setdefault(call.site.level, {})
        for frame, one in zip(call.evaluation.frames, maps.unflatten(-1, call.grid[1:])):
            level[frame] = level[frame] + one if frame in level else one

    def chosen(self) -> dict[int, Tensor]:
        """The maps whose size is nearest to the paper's 16x16."""
        ratio = {level: next(iter(m.values())).numel() / MASK_CELLS for level, m in self.maps.items()}
        return self.maps[min(ratio, key=lambda level: max(ratio[level], 1 / ratio[level]))]


@dataclass(frozen=True)
class Fusion:
    """What one step's attention needs to know."""

    tokens: text.TokenMap
    weights: Tensor  # [L]
    words: dict[int, Tensor] | None  # frame -> [h, w], attention of the source to the chosen words


@dataclass(frozen=True)
class FateZero(Control):
    """See `fate_zero`."""

    needs_source: ClassVar[bool] = True

    words: tuple[str, ...] = ()
    self_share: float = 0.8
    cross_share: float = 0.8
    threshold: float = 0.3
    mapping: Mapping = "refine"
    reweight: tuple[tuple[str, float], ...] = ()
    key_frames: KeyFrames = "previous_and_first"
    most_tokens: int = 32 * 32

    def __post_init__(self):
        for name in ("self_share", "cross_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a share of the run, 0..1, got {getattr(self, name)}")
        for name in ("threshold", "most_tokens"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be 0 or more, got {getattr(self, name)}")
        for name, kind in {"mapping": Mapping, "key_frames": KeyFrames}.items():
            if getattr(self, name) not in get_args(kind):
                raise ValueError(f"no {name} '{getattr(self, name)}': want one of {', '.join(get_args(kind))}")

    @property
    def needs_all_frames(self) -> bool:
        return self.key_frames != "own"

    def check(self, trajectory: Trajectory, backbone: Backbone) -> None:
        for word in self.words:
            text.positions(trajectory.prompt, word)
        if not {"spatial", "cross"} <= {site.kind for site in backbone.sites}:
            raise ValueError(f"FateZero wants self- and cross-attention, and '{backbone.name}' does not have both")

    def evaluate(self, evaluation: Evaluation, evaluate: Callable[[Evaluation], Tensor]) -> Tensor:
        if not {"source", "positive"} <= set(evaluation.rows):
            return evaluate(evaluation)  # an inversion: nothing to fuse
        source, target = (evaluation.prompts[evaluation.rows.index(row)] for row in ("source", "positive"))
        tokens = (text.refined if self.mapping == "refine" else text.replaced)(source, target)
        weights = text.weights(target, self.reweight)
        fusion = Fusion(tokens, weights, self._words(evaluation, evaluate))
        return evaluate(evaluation.share(self, fusion))

    def _words(self, evaluation: Evaluation, evaluate: Callable[[Evaluation], Tensor]) -> dict[int, Tensor] | None:
        """Where the source shows the words, by an evaluation of it alone: early layers need what late ones say."""
        if not self.words or self.threshold >= 1 or not self._fuses_self(evaluation):
            return None
        row = evaluation.rows.index("source")
        prompt = evaluation.prompts[row]
        watch = Watch([at for word in self.words for at in text.positions(prompt, word)])
        alone = replace(evaluation, latents=evaluation.latents[row][None], prompts=(prompt,), rows=("source",))
        evaluate(alone.share(self, watch))
        return watch.chosen()

    def _fuses_self(self, evaluation: Evaluation) -> bool:
        return evaluation.step < int(self.self_share * evaluation.steps)

    def attention(self, call: AttentionCall, q: Tensor, k: Tensor, v: Tensor, attend: Attend) -> Tensor:
        shared = call.evaluation.shared.get(self)
        if call.site.kind == "spatial":
            k, v = self._keys_of_frames(k), self._keys_of_frames(v)
        if isinstance(shared, Watch) and call.site.kind == "cross" and call.site.half != "middle":
            shared.add(call, q[0], k[0])
        if not isinstance(shared, Fusion) or 0 < self.most_tokens < q.shape[3]:
            return attend(q, k, v)
        if call.site.kind == "spatial" and self._fuses_self(call.evaluation):
            return self._self(shared, call, q, k, v, attend)
        if call.site.kind == "cross" and call.evaluation.step < int(self.cross_share * (call.evaluation.steps + 1)):
            return self._cross(shared, call, q, k, v, attend)
        return attend(q, k, v)

    def _self(self, fusion: Fusion, call: AttentionCall, q: Tensor, k: Tensor, v: Tensor, attend: Attend) -> Tensor:
        source, edit = (slice(r, r + 1) for r in (call.row("source"), call.row("positive")))
        fused = attend(q[source], k[source], v[edit])
        out = attend(q, k, v)
        if fusion.words is not None:
            mask = self.mask(torch.stack([fusion.words[f] for f in call.evaluation.frames]), call.grid[1:])
            fused = torch.where(mask.flatten(1)[None, :, None, :, None], out[edit], fused)
        return torch.cat([out[: edit.start], fused, out[edit.stop :]])

    def _cross(self, fusion: Fusion, call: AttentionCall, q: Tensor, k: Tensor, v: Tensor, attend: Attend) -> Tensor:
        source, edit = (slice(r, r + 1) for r in (call.row("source"), call.row("positive")))
        out = attend(q, k, v)
        weighted = fusion.weights.to(v)[:, None] * v[edit]
        new = attend(q[source], k[source], fusion.tokens.taken.to(v) @ weighted)
        new = new + attend(q[edit], k[edit], fusion.tokens.kept.to(v)[:, None] * weighted)
        return torch.cat([out[: edit.start], new, out[edit.stop :]])

    def mask(self, maps: Tensor, grid: tuple[int, int]) -> Tensor:
        """Attention to the words [F, h, w] -> bool [F, *grid], where the edit keeps its own self-attention."""
        spread = F.max_pool2d(maps[:, None], 3, stride=1, padding=1)
        sized = F.interpolate(spread, size=tuple(grid))[:, 0]
        return sized / sized.amax((1, 2), keepdim=True) > self.threshold

    def _keys_of_frames(self, x: Tensor) -> Tensor:
        """k or v [R, F, H, n, D] of the frames that each frame attends to, end to end."""
        frames = torch.arange(x.shape[1], device=x.device)
        if self.key_frames == "own":
            return x
        if self.key_frames == "middle":
            return x[:, torch.full_like(frames, len(frames) // 2)]
        return torch.cat([x[:, (frames - 1).clamp(min=0)], x[:, torch.zeros_like(frames)]], 3)


def fate_zero(plan: EditPlan, **numbers) -> EditPlan:
    """`plan` with FateZero's attention fusion.

    Args:
        words: of the source's prompt, the thing to edit; where it is, the edit keeps its own self-attention. None:
            all self-attention is the source's.
        self_share: share of the run in which self-attention is fused, 0..1; 0.8.
        cross_share: the same for cross-attention; 0.8.
        threshold: of the words' mask, 0 or more; 0.3. From 1 on the mask is empty.
        mapping: "refine": words that both prompts share take the source's maps, new ones keep the edit's; "replace":
            word i of the target takes the map of word i of the source.
        reweight: words of the target's prompt with factors on their maps.
        key_frames: what a frame attends to, in every row: "previous_and_first" frame as in the paper, the "middle" one
            (the released program's choice for some clips), or its "own", as an image model is trained. Give DDIM
            Inversion the same plan, so that it attends alike.
        most_tokens: layers with more queries are left alone; 32 x 32 as released. 0: no such limit.

    Raises:
        ValueError: a number out of range or an unknown choice; when sampling, a word that is not in its prompt,
            prompts that cannot be mapped, or a model without both kinds of attention.
    """
    return plan.then(FateZero(**numbers))
