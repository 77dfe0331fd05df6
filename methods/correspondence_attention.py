"""Correspondence-guided attention: every token looks at its own matches in the other frames, and at nothing else.

paper    COVE, Wang et al. 2024, section 3.3, equations 11-14
needs    a Correspondence of the clip; an image model, as a rule with spatio-temporal attention inside this
gives    a Control at spatial self-attention
differs  the paper does not say where its attention acts. Its equation 13 has neither key nor value projections, so by
         default it takes the output of the layer's attention as query, key and value, and replaces it, as FLATTEN
         (Cong et al. 2023) does along its trajectories, at the correspondence's own resolution

    list of (i, p) = the K matches of place p of frame i in every frame j != i
    out(i, p) = softmax(q(i, p) . merge(list) / sqrt(d)) merge(list)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from einops import rearrange
from torch import Tensor

from ..engine.call import Attend, Call
from ..engine.correspondence import Correspondence
from ..engine.plan import Control, Needs, Slot
from ..engine.source import Trajectory
from ..engine.words import Model, Prompt
from ..kernels import gather_attention
from ..kernels.tiles import computing_dtype, row_tiles
from .merging import merge_bipartite, merge_pairs

Tokens = Literal["output", "projected"]
Levels = Literal["finest", "all"]
Merging = Literal["bipartite", "pairs"]
Merge = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
BUDGET = 2**22  # gathered numbers held at once where lists are merged, 16 MB in float32


@dataclass(frozen=True, eq=False)
class CorrespondenceAttention(Control):
    """Attention along the correspondences of the clip.

    Args:
        found: of the very clip that is edited, from the model that edits.
        tokens: "output": of the layer's own attention, before its output projection, are query, key and value;
            "projected": the layer's queries, keys and values, whose own attention then only strength below 1 needs.
        levels: "finest": the layers of the correspondence's resolution; "all": the coarser ones too, whose places ask
            the place in their middle. Layers finer than the correspondence are left alone.
        strength: 0..1, from the plain attention's output to the guided one's; 0 is the plain edit bit for bit.
        merge_ratio: share of each token's list that is merged away, 0 (off) to under 1; the paper's is 0.5. Since
            queries are taken a few at a time, it saves no memory here; see benchmarks/results/cove_cost_cpu.md.
        merging: "bipartite" matching, or "pairs": the mean over two frames that follow each other, match by match,
            which merges half whatever the ratio and is faster.

    Raises:
        ValueError: a number out of range or an unknown choice; when sampling, a correspondence of another clip or
            model, or one whose resolution the model has no attention at.
    """

    slot: ClassVar[Slot] = "output"

    found: Correspondence
    tokens: Tokens = "output"
    levels: Levels = "finest"
    strength: float = 1.0
    merge_ratio: float = 0.5
    merging: Merging = "bipartite"

    def __post_init__(self):
        if not 0 <= self.strength <= 1:
            raise ValueError(f"want a strength in 0..1, got {self.strength}; 0 is the plain edit")
        if not 0 <= self.merge_ratio < 1:
            raise ValueError(f"want a merge ratio from 0 (off) to under 1, got {self.merge_ratio}")
        for name, kind in {"tokens": Tokens, "levels": Levels, "merging": Merging}.items():
            if getattr(self, name) not in get_args(kind):
                raise ValueError(f"no {name} '{getattr(self, name)}': want one of {', '.join(get_args(kind))}")

    def acts_at(self, seam: str) -> bool:
        return self.strength > 0 and super().acts_at(seam)

    def needs(self) -> Needs:
        return Needs(all_frames=True)

    def check(self, trajectory: Trajectory, model: Model, target: Prompt | None) -> None:
        if self.found.model != model.fingerprint:
            raise ValueError(
                f"the correspondence was found with another model (fingerprint {self.found.model}) than "
                f"'{model.name}' ({model.fingerprint}), which is to edit: make it with that one"
            )
        guided = [s for s in model.sites if s.kind == "spatial" and self._octaves(s.level) is not None]
        at_its_level = [p for p in (*model.sites, *model.blocks) if p.level == self.found.level]
        frames, *grid = model.grid(at_its_level[0], trajectory.shape)
        self.found.require(frames, tuple(grid))
        if not guided:
            raise ValueError(
                f"'{model.name}' has no self-attention at the resolution of this correspondence: choose levels "
                "'all', or another up_block where the correspondence is made"
            )

    def _octaves(self, level: int) -> int | None:
        """How much coarser than the correspondence a level is that is guided, None where it is not."""
        octaves = level - self.found.level
        return octaves if octaves == 0 or (self.levels == "all" and octaves > 0) else None

    def attention(self, call: Call, attend: Attend) -> Tensor:
        octaves = self._octaves(call.site.level)
        if call.site.kind != "spatial" or octaves is None or len(call.frames) < 2:
            return attend(call)
        plain = attend(call) if self.tokens == "output" or self.strength < 1 else None
        q, k, v = (plain,) * 3 if self.tokens == "output" else (call.q, call.k, call.v)
        guided = self._guided(call, octaves, q, k, v)
        return guided if self.strength == 1 else torch.lerp(plain, guided, self.strength)

    def _guided(self, call: Call, octaves: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention of q [R, F, H, N, D] over each token's own list, in the frames that this call has."""
        found = self.found.to(q.device)
        keys = rearrange(k, "r f h n d -> r h (f n) d")
        values = keys if v is k else rearrange(v, "r f h n d -> r h (f n) d")
        out = []
        for at, frame in enumerate(call.frames):
            call.run.monitor.check()
            tokens = q[:, at], keys, values, lists_of(found, frame, octaves, call.frames)
            if self.merge_ratio:
                out.append(merged_attention(*tokens, call.scale, self._merge))
            else:
                out.append(gather_attention(*tokens, scale=call.scale))
        return torch.stack(out, 1)

    def _merge(self, keys: Tensor, values: Tensor, there: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if self.merging == "pairs":
            return merge_pairs(keys, values, there, self.found.top_k)
        return merge_bipartite(keys, values, there, self.merge_ratio)


def merged_attention(
    q: Tensor, keys: Tensor, values: Tensor, lists: Tensor, scale: float, merge: Merge, budget: int = BUDGET
) -> Tensor:
    """As `gather_attention`, with each query's own list merged before.

    Args:
        q: [R, H, M, D].
        keys, values: [R, H, T, D].
        lists: [M, L] into the T tokens; -1 is padding.
        merge: keys, values [R, m, L, H D] and which are there [R, m, L] -> the same of fewer.
        budget: gathered numbers held at once; queries are taken a few at a time.
    """
    rows, heads, queries, size = q.shape
    together = [rearrange(x, "r h t d -> r t (h d)") for x in ((keys,) if values is keys else (keys, values))]
    out = []
    for some in row_tiles(queries, rows * lists.shape[1] * heads * size, budget):
        there, at = lists[some] >= 0, lists[some].clamp(min=0).long()
        gathered = [x[:, at].to(computing_dtype(q.dtype)) for x in together]
        *merged, left = merge(gathered[0], gathered[-1], there.expand(rows, *there.shape))
        k, v = (rearrange(x, "r m l (h d) -> r h m l d", h=heads) for x in merged)
        logits = (k @ q[:, :, some, :, None].to(k))[..., 0] * scale
        weights = logits.masked_fill(~left[:, None], torch.finfo(k.dtype).min).softmax(-1)
        out.append((weights[..., None, :] @ v)[..., 0, :])
    return torch.cat(out, 2).to(q.dtype)


def lists_of(found: Correspondence, frame: int, octaves: int = 0, among: Sequence[int] | None = None) -> Tensor:
    """[N, (F-1) K] int32: the tokens of the other frames that each token of a frame looks at, numbered f * N + n.

    Frames ascending, in each the best match first; -1 is padding. With `octaves`, tokens are those of a grid coarser
    by that many halvings, and ask the place in their middle. With `among`, frames are these of the clip alone, and f
    counts in them.
    """
    among = range(found.frames) if among is None else among
    (height, width), stride = found.grid, 2**octaves
    h, w = _coarser(found.grid, octaves)
    device = found.forward.device
    rows = (torch.arange(h, device=device) * stride + stride // 2).clamp(max=height - 1)
    columns = (torch.arange(w, device=device) * stride + stride // 2).clamp(max=width - 1)
    matches = found.matches(frame, (rows[:, None] * width + columns).flatten())
    others = [(i, other) for i, other in enumerate(among) if other != frame]
    numbers, others = (torch.tensor(n, device=device) for n in zip(*others))
    matches = matches[others]
    tokens = matches // width // stride * w + matches % width // stride
    tokens = (tokens + (numbers * h * w)[:, None, None]).masked_fill(matches < 0, -1)
    return rearrange(tokens, "f n k -> n (f k)").int()


def _coarser(grid: tuple[int, int], octaves: int) -> tuple[int, int]:
    """A grid after some halvings, each rounding up."""
    return tuple(-(-n // 2**octaves) for n in grid)
