"""One evaluation of the network, and one call of an attention layer or a block in it, by named rows and frames.

A control gets a `Call`, changes it with `only`, `seeing`, `mapped` or `replace`, and hands it on: `attend(call)`. Rows
and frames keep their names on the way, so that a control further in knows whose queries it sees, whoever acted before.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from .monitor import SILENT, Monitor
from .words import SOURCE, Block, Prompt, Row, Site


@dataclass(frozen=True, eq=False)
class Run:
    """Where an edit or an inversion stands."""

    step: int = 0  # 0 is the first, noisiest step of the run
    steps: int = 1
    monitor: Monitor = SILENT
    shared: Mapping[Any, Any] = field(default_factory=dict)  # what a control made in `evaluate` for its own `attention`
    kept: dict[Any, Any] = field(default_factory=dict)  # what a control makes once a run; empty at its start


@dataclass(frozen=True, eq=False)
class Evaluation:
    """One evaluation of the network: a batch of whole clips at one noise level."""

    latents: Tensor  # [R, F, C, h, w]
    label: float  # of the level, as the schedule tells the network
    prompts: tuple[Prompt, ...]  # one a row
    rows: tuple[Row, ...]
    image: Tensor | None = None  # [F, C, h, w] clean latents of the source, for models that are given its picture
    frames: tuple[int, ...] = ()  # where in the clip these frames are; by default all of it, in order
    whole: bool = False  # these frames must be evaluated together, however few a chunk may have
    recompute: bool = False  # with gradients: blocks are evaluated again in the backward pass, and not kept
    run: Run = field(default_factory=Run)

    def __post_init__(self):
        if not self.frames:
            object.__setattr__(self, "frames", tuple(range(self.latents.shape[1])))

    def select(self, positions: Sequence[int]) -> Evaluation:
        """The same for some of these frames, by their positions in it."""
        at = list(positions)
        places = _places(at)  # a chunk of a long clip is copied nowhere, and no list of places waits for a GPU
        return replace(
            self,
            latents=self.latents[:, places],
            prompts=tuple(prompt.select(at) for prompt in self.prompts),
            image=None if self.image is None else self.image[places],
            frames=tuple(self.frames[i] for i in at),
        )

    def only(self, *rows: Row) -> Evaluation:
        """The same for some of its rows."""
        at = [self.rows.index(row) for row in rows]
        return replace(self, latents=self.latents[at], prompts=tuple(self.prompts[i] for i in at), rows=rows)

    def prompt(self, row: Row) -> Prompt:
        return self.prompts[self.rows.index(row)]

    def share(self, owner: Any, value: Any) -> Evaluation:
        """The same with `value` under `run.shared[owner]`."""
        return replace(self, run=replace(self.run, shared={**self.run.shared, owner: value}))


@dataclass(frozen=True, eq=False)
class Call:
    """One call of one attention layer.

    G groups attend among themselves: the frames of spatial and cross attention, the pixels of temporal attention.
    Queries and keys may be those of other rows than the values (`mapped`), and keys may be one set for all groups.
    """

    site: Site
    rows: tuple[Row, ...]  # whose outputs these are, and whose values
    q: Tensor  # [R, G, H, M, D]
    k: Tensor  # [R, G or 1, H, L, D]; 1: every group sees the same. In joint attention the clip's tokens come last
    v: Tensor  # as k
    frames: tuple[int, ...]  # of the clip
    grid: tuple[int, int, int]  # (F, h, w) of the image tokens at this site
    scale: float  # of the logits
    tokens: Tensor  # [R, G, M, C] what v (and k, in self-attention) is projected from, normalised as the layer takes it
    key_tokens: Tensor  # the same for q and k: another row's where they are
    project: Callable[[Tensor], tuple[Tensor, Tensor]]  # tokens [R, G, M, C] -> k, v [R, G, H, M, D] by its weights
    run: Run
    bias: Tensor | None = None  # [R or 1, G or 1, H or 1, M or 1, L] added to the logits; of joined keys, M is 1
    seen: tuple[tuple[int, ...], ...] | None = None  # for each group, whose keys it sees, by position; None: its own
    map_of: tuple[Row, ...] = ()  # whose queries and keys these are; by default those of `rows`
    beside: Call | None = None  # the source's call of the same layer, where this evaluation or an earlier one has it

    @property
    def source(self) -> Call:
        """The source's call at this layer. Raises ValueError where nothing asked for the source to run."""
        if self.beside is not None:
            return self.beside
        raise ValueError(f"no source beside the edit at {self.site.layer}: this evaluation has {_names(self.rows)}")

    def only(self, *rows: Row) -> Call:
        """The call of some rows, in this order."""
        if rows == self.rows:
            return self
        if missing := [row for row in rows if row not in self.rows]:
            raise ValueError(f"no {_names(missing)} row at {self.site.layer}: this call has {_names(self.rows)}")
        at = _places([self.rows.index(row) for row in rows])
        tokens = self.tokens[at]
        key_tokens = tokens if self.key_tokens is self.tokens else self.key_tokens[at]
        bias = self.bias[at] if self.bias is not None and len(self.bias) > 1 else self.bias
        picked = {name: getattr(self, name)[at] for name in ("q", "k", "v")}
        map_of = tuple(self.map_of[self.rows.index(row)] for row in rows) if self.map_of else ()
        return replace(self, rows=rows, bias=bias, tokens=tokens, key_tokens=key_tokens, map_of=map_of, **picked)

    def mapped(self, other: Call) -> Call:
        """The call with the queries and keys, so the attention map, of another one of the same layer: of the source,
        say. Its one row then serves every row here."""
        q, k, key_tokens = (x.expand(len(self.rows), *x.shape[1:]) for x in (other.q, other.k, other.tokens))
        if self.site.kind == "joint":  # a text's tokens stay with its values
            clip = math.prod(self.grid)
            q, k = (torch.cat([own[..., :-clip, :], x[..., -clip:, :]], 3) for own, x in ((self.q, q), (self.k, k)))
        return replace(self, q=q, k=k, key_tokens=key_tokens, map_of=other.rows * len(self.rows))

    def seeing(self, frames: Iterable[Sequence[int]]) -> Call:
        """The call with every group's keys taken from these frames, by their position here; what controls ask for
        adds up. Where all groups have one set of keys already, that stands for all frames and nothing changes."""
        if self.k.shape[1] != self.q.shape[1]:
            return self
        asked = tuple(tuple(f) for f in frames)
        if len(asked) != self.q.shape[1]:
            raise ValueError(f"want the frames that each of {self.q.shape[1]} groups sees, got those of {len(asked)}")
        if self.seen is not None:
            asked = tuple(tuple(sorted({*a, *b})) for a, b in zip(self.seen, asked, strict=True))
        return replace(self, seen=asked)

    def seeing_all(self) -> Call:
        """Every frame sees all frames of the call."""
        everyone = tuple(range(self.q.shape[1]))
        return self.seeing((everyone,) * len(everyone))

    def with_keys(self, k: Tensor, v: Tensor) -> Call:
        """The call with other keys and values [R, 1, H, L, D], the same for every group."""
        return replace(self, k=k, v=v, seen=None, bias=None)


@dataclass(frozen=True, eq=False)
class Features:
    """What one block gives, for the feature seam."""

    block: Block
    x: Tensor  # [R, F, C, h, w]
    rows: tuple[Row, ...]
    run: Run
    beside: Tensor | None = None  # [1, F, C, h, w] the source's at this block

    @property
    def source(self) -> Tensor:
        if self.beside is not None:
            return self.beside
        raise ValueError(f"no source beside the edit at {self.block.name}: this evaluation has {_names(self.rows)}")


Attend = Callable[[Call], Tensor]


def beside(call: Call) -> Call:
    """The call, knowing its own source row if it has one."""
    if call.beside is not None or SOURCE not in call.rows:
        return call
    return replace(call, beside=call.only(SOURCE))


def softmax_attention(call: Call) -> Tensor:
    """softmax(scale q k^T + bias) v over the keys each group sees: [R, G, H, M, D].

    Groups that see the same keys are one long row of queries, and no logits are held.
    """
    groups = call.q.shape[1]
    k, v = call.k, call.v
    if call.seen is not None and len(set(call.seen)) == 1:
        k, v = (_joined(x[:, _places(list(call.seen[0]))]) for x in (k, v))
    elif call.seen is not None and _equally_many(call.seen):
        at = _index(call)
        k, v = (rearrange(x.index_select(1, at), "r (g s) h m d -> r g h (s m) d", g=groups) for x in (k, v))
    elif call.seen is not None:  # as many calls as there are different sets: this happens at the clip's two ends
        alone = (replace(call, seen=None, q=call.q[:, i : i + 1]) for i in range(groups))
        parts = (
            softmax_attention(replace(c, k=_joined(k[:, list(at)]), v=_joined(v[:, list(at)])))
            for c, at in zip(alone, call.seen)
        )
        return torch.cat(list(parts), 1)
    if k.shape[1] == 1 and groups > 1:  # one long row of queries; what is added to their logits is the same for all
        return _sdpa(_joined(call.q), k, v, call.scale, call.bias).unflatten(3, (groups, -1)).squeeze(1).movedim(2, 1)
    return _sdpa(call.q, k, v, call.scale, call.bias)


def _index(call: Call) -> Tensor:
    """[G S] which groups' keys each group sees, brought to the device once a run and not at every layer."""
    key = Call, call.seen, call.k.device
    if key not in call.run.kept:
        call.run.kept[key] = torch.tensor([i for at in call.seen for i in at], device=call.k.device)
    return call.run.kept[key]


def _sdpa(q: Tensor, k: Tensor, v: Tensor, scale: float, bias: Tensor | None) -> Tensor:
    """[R, G, H, M, D]; the kernels that hold no logits take four dimensions."""
    if bias is not None:
        bias = bias.expand(*q.shape[:2], q.shape[2], *bias.shape[-2:]).flatten(0, 1).to(q.dtype)
    flat = (x.flatten(0, 1) for x in (q, k, v))
    return F.scaled_dot_product_attention(*flat, attn_mask=bias, scale=scale).unflatten(0, q.shape[:2])


def _joined(x: Tensor) -> Tensor:
    """The tokens of all groups as those of one: [R, G, H, M, D] -> [R, 1, H, G M, D]."""
    return rearrange(x, "r g h m d -> r 1 h (g m) d")


def _equally_many(seen: Sequence[Sequence[int]]) -> bool:
    return len({len(at) for at in seen}) == 1


def _places(at: list[int]) -> slice | list[int]:
    """A slice, which copies nothing, where the places follow each other."""
    return slice(at[0], at[-1] + 1) if at == list(range(at[0], at[-1] + 1)) else at


def _names(rows: Sequence[Row]) -> str:
    return ", ".join(map(str, rows)) or "none"


def joined_rows(rows: Sequence[Row], parts: Mapping[Row, Tensor]) -> Tensor:
    """[R, ...] in the order of `rows`, from one tensor [1, ...] a row."""
    return torch.cat([parts[row] for row in rows])
