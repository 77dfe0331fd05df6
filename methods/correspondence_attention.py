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

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from ..engine.call import Attend, Call
from ..engine.correspondence import Correspondence
from ..engine.plan import Control, Needs, Slot
from ..engine.source import Trajectory
from ..engine.words import Model, Prompt
from ..kernels import Lists, gather_attention, merged_attention

Tokens = Literal["output", "projected"]
Levels = Literal["finest", "all"]
Merging = Literal["bipartite", "pairs"]


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

    def fits(self, model: Model) -> None:
        if self.found.model != model.fingerprint:
            raise ValueError(
                f"the correspondence was found with another model (fingerprint {self.found.model}) than "
                f"'{model.name}' ({model.fingerprint}), which is to edit: make it with that one"
            )

    def check(self, trajectory: Trajectory, model: Model, target: Prompt | None) -> None:
        there = [p for p in (*model.sites, *model.blocks) if p.level == self.found.level]
        if there:
            frames, *grid = model.grid(there[0], trajectory.shape)
            self.found.require(frames, tuple(grid))
        if not there or not any(s.kind == "spatial" and self._octaves(s.level) is not None for s in model.sites):
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
        """Attention of q [R, F, H, N, D] over each token's own list, all frames of the call at once."""
        call.run.monitor.check()
        lists = self._lists(call, octaves, q.device)
        queries, keys = (rearrange(x, "r f h n d -> r h (f n) d") for x in (q, k))
        values = keys if v is k else rearrange(v, "r f h n d -> r h (f n) d")
        if not self.merge_ratio:
            out = gather_attention(queries, keys, values, lists, scale=call.scale)
        elif self.merging == "pairs":
            out = merged_attention(queries, keys, values, lists, matching="neighbours", scale=call.scale)
        else:
            out = merged_attention(queries, keys, values, lists, ratio=self.merge_ratio, scale=call.scale)
        return rearrange(out, "r h (f n) d -> r f h n d", f=q.shape[1])

    def _lists(self, call: Call, octaves: int, device: torch.device) -> Lists:
        """The lists of the frames that a call has, made once a run."""
        key = self, octaves, device, call.frames
        if key not in call.run.kept:
            made = all_lists(self.found, octaves, among=call.frames)
            made = side_by_side(made, self.found.top_k) if self.merge_ratio and self.merging == "pairs" else made
            call.run.kept[key] = Lists(made.flatten(0, 1), made.shape[0] * made.shape[1]).to(device)
        return call.run.kept[key]


def all_lists(
    found: Correspondence, octaves: int = 0, device: torch.device | str = "cpu", among: tuple[int, ...] | None = None
) -> Tensor:
    """[F, N, (F-1) K] int32: the tokens of the other frames that each token looks at, numbered f * N + n.

    Frames ascending, in each the best match first; -1 is padding.

    Args:
        octaves: tokens are those of a grid coarser by that many halvings, and ask the place in their middle.
        among: the frames that are there, ascending, of F or fewer; all by default. Lists hold their tokens alone,
            numbered by a frame's position among them. Matches are followed through the frames that are not there.
    """
    among = tuple(range(found.frames)) if among is None else tuple(among)
    (height, width), stride = found.grid, 2**octaves
    h, w = _coarser(found.grid, octaves)
    rows = (torch.arange(h) * stride + stride // 2).clamp(max=height - 1)
    columns = (torch.arange(w) * stride + stride // 2).clamp(max=width - 1)
    middles = (rows[:, None] * width + columns).flatten()
    lists = []
    for frame in among:
        others = [position for position, other in enumerate(among) if other != frame]
        matches = found.matches(frame, middles)[[among[position] for position in others]]
        tokens = matches // width // stride * w + matches % width // stride
        first = torch.tensor(others, dtype=torch.int32, device=matches.device) * (h * w)
        tokens = (tokens + first[:, None, None]).masked_fill(matches < 0, -1)
        lists.append(rearrange(tokens, "f n k -> n (f k)"))
    return torch.stack(lists).to(device)


def side_by_side(lists: Tensor, rank: int) -> Tensor:
    """Lists [..., f K] with the matches of one rank in two frames that follow each other next to each other.

    A last frame without another gets padding beside it: [..., 2 ceil(f / 2) K].
    """
    odd = lists.shape[-1] // rank % 2 * rank
    return rearrange(F.pad(lists, (0, odd), value=-1), "... (f two k) -> ... (f k two)", two=2, k=rank)


def _coarser(grid: tuple[int, int], octaves: int) -> tuple[int, int]:
    """A grid after some halvings, each rounding up."""
    return tuple(-(-n // 2**octaves) for n in grid)
