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
from functools import partial
from typing import ClassVar, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from ..engine.call import Attend, Call, Evaluation, Run, joined_rows
from ..engine.plan import Control, Needs, Slot
from ..engine.source import Trajectory
from ..engine.words import SOURCE, Model, Prompt, Row
from . import words as text

Mapping = Literal["refine", "replace"]
KeyFrames = Literal["previous_and_first", "middle", "own"]
MASK_CELLS = 16 * 16  # the size of maps that masks are read from


@dataclass
class Watch:
    """Sums, over layers, of the source's attention to the chosen words, by level and frame of the clip."""

    at: list[int]  # positions of the words' tokens
    level: int | None = None  # the only one to look at, where it is known which will be chosen
    maps: dict[int, dict[int, dict[str, Tensor]]] = field(default_factory=dict)  # level -> frame -> layer -> [h, w]

    def add(self, source: Call) -> None:
        """One cross-attention call of the source. Told again of the same frames, it forgets what it was told."""
        if self.level not in (None, source.site.level):
            return
        q, k = source.q[0], source.k[0]
        maps = (q * source.scale @ k.mT).softmax(-1, dtype=torch.float32)[..., self.at].sum(-1).mean(1)
        level = self.maps.setdefault(source.site.level, {})
        for frame, one in zip(source.frames, maps.unflatten(-1, source.grid[1:])):
            level.setdefault(frame, {})[source.site.layer] = one

    def nearest(self) -> int:
        """The level whose maps are nearest in size to the paper's 16x16."""
        size = {level: next(iter(next(iter(m.values())).values())).numel() for level, m in self.maps.items()}
        return min(size, key=lambda level: max(size[level] / MASK_CELLS, MASK_CELLS / size[level]))

    def chosen(self) -> dict[int, Tensor]:
        """frame -> [h, w], of that level."""
        frames = self.maps[self.nearest()]
        every = torch.stack([one for layers in frames.values() for one in layers.values()])
        return dict(zip(frames, every.unflatten(0, (len(frames), -1)).sum(1)))


@dataclass(frozen=True)
class Fusion:
    """What one step's attention needs to know."""

    tokens: dict[Row, text.TokenMap]  # of each positive row
    weights: dict[Row, Tensor]  # [L]
    words: dict[int, Tensor] | None  # frame -> [h, w], attention of the source to the chosen words
    masks: dict[tuple, Tensor] = field(default_factory=dict)  # made of them, by frames and grid: once, not a layer


@dataclass(frozen=True)
class FateZero(Control):
    """FateZero's attention fusion.

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

    slot: ClassVar[Slot] = "map"
    title: ClassVar[str] = "FateZero"

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

    def needs(self) -> Needs:
        own = self.key_frames == "own"
        return Needs(source=True, all_frames=not own, keys="own" if own else "frames")

    def fits(self, model: Model) -> None:
        if not {"spatial", "cross"} <= {site.kind for site in model.sites}:
            raise ValueError(f"FateZero wants self- and cross-attention, and '{model.name}' does not have both")

    def check(self, trajectory: Trajectory, model: Model, target: Prompt | None) -> None:
        for word in self.words:
            text.positions(trajectory.prompt, word)
        if target is not None:
            self._fused(trajectory.prompt, target)

    def _fused(self, source: Prompt, target: Prompt) -> tuple[text.TokenMap, Tensor]:
        tokens = (text.refined if self.mapping == "refine" else text.replaced)(source, target)
        return tokens, text.weights(target, self.reweight)

    def evaluate(self, evaluation: Evaluation, evaluate: Callable[[Evaluation], Tensor]) -> Tensor:
        edits = [row for row in evaluation.rows if row.role == "positive"]
        if not edits or SOURCE not in evaluation.rows:
            return evaluate(evaluation)  # an inversion: nothing to fuse
        source = evaluation.prompt(SOURCE)
        fused = {row: self._fused(source, evaluation.prompt(row)) for row in edits}
        device = evaluation.latents.device  # once a step: every layer's upload would make the GPU wait
        tokens, weights = ({row: pair[i].to(device) for row, pair in fused.items()} for i in (0, 1))
        return evaluate(evaluation.share(self, Fusion(tokens, weights, self._words(evaluation, evaluate))))

    def _words(self, evaluation: Evaluation, evaluate: Callable[[Evaluation], Tensor]) -> dict[int, Tensor] | None:
        """Where the source shows the words, by an evaluation of it alone: early layers need what late ones say."""
        if not self.words or self.threshold >= 1 or not self._fuses_self(evaluation.run):
            return None
        at = [at for word in self.words for at in text.positions(evaluation.prompt(SOURCE), word)]
        kept = evaluation.run.kept
        watch = Watch(at, kept.get((FateZero, self)))  # the first step sees all levels, of which one is read
        evaluate(evaluation.only(SOURCE).share(self, watch))
        kept[FateZero, self] = watch.nearest()
        return watch.chosen()

    def _fuses_self(self, run: Run) -> bool:
        return run.step < int(self.self_share * run.steps)

    def attention(self, call: Call, attend: Attend) -> Tensor:
        shared = call.run.shared.get(self)
        if call.site.kind == "spatial":
            call = self._at_key_frames(call)
        if isinstance(shared, Watch) and call.site.kind == "cross" and call.site.half != "middle":
            shared.add(call.source)
        if not isinstance(shared, Fusion) or 0 < self.most_tokens < call.q.shape[3]:
            return attend(call)
        if call.site.kind == "spatial" and self._fuses_self(call.run):
            return self._replaced(call, attend, partial(self._self, shared))
        if call.site.kind == "cross" and call.run.step < int(self.cross_share * (call.run.steps + 1)):
            return self._replaced(call, attend, partial(self._cross, shared))
        return attend(call)

    def _replaced(self, call: Call, attend: Attend, fuse: Callable[[Call, Attend], Tensor]) -> Tensor:
        """The call's output, that of every positive row fused, [1, F, H, N, D]."""
        others = tuple(row for row in call.rows if row.role != "positive")
        parts = dict(zip(others, attend(call.only(*others)).split(1))) if others else {}
        parts |= {row: fuse(call.only(row), attend) for row in call.rows if row not in parts}
        return joined_rows(call.rows, parts)

    def _self(self, fusion: Fusion, call: Call, attend: Attend) -> Tensor:
        fused = attend(call.mapped(call.source))
        if fusion.words is None:
            return fused
        key = call.frames, call.grid
        if key not in fusion.masks:
            mask = self.mask(torch.stack([fusion.words[f] for f in call.frames]), call.grid[1:])
            fusion.masks[key] = mask.flatten(1)[None, :, None, :, None]
        return torch.where(fusion.masks[key], attend(call), fused)

    def _cross(self, fusion: Fusion, call: Call, attend: Attend) -> Tensor:
        (row,) = call.rows
        tokens, weighted = fusion.tokens[row], fusion.weights[row].to(call.v)[:, None] * call.v
        kept = replace(call, v=tokens.kept.to(weighted)[:, None] * weighted)
        return attend(replace(call.mapped(call.source), v=tokens.taken.to(weighted) @ weighted)) + attend(kept)

    def mask(self, maps: Tensor, grid: tuple[int, int]) -> Tensor:
        """Attention to the words [F, h, w] -> bool [F, *grid], where the edit keeps its own self-attention."""
        spread = F.max_pool2d(maps[:, None], 3, stride=1, padding=1)
        sized = F.interpolate(spread, size=tuple(grid))[:, 0]
        return sized / sized.amax((1, 2), keepdim=True) > self.threshold

    def _at_key_frames(self, call: Call) -> Call:
        """The call with every frame attending to its key frames."""
        if self.key_frames == "own":
            return call
        count = call.q.shape[1]
        if self.key_frames == "middle":
            return call.seeing(((count - 1) // 2,) for _ in range(count))
        return call.seeing((max(f - 1, 0), 0) for f in range(count))
