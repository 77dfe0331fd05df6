"""One pass of the network for some rows, and the attention calls in it as controls see them.

Rows with other latents than the source's cannot be in its batch here, so the source has a pass of its own, before the
edit's. What it had at each place that a control looks at is kept until the edit's pass is over.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from comfy.ldm.modules.attention import attention_pytorch
from einops import rearrange
from torch import Tensor

from ...engine.call import Call, Evaluation, Features, beside, softmax_attention
from ...engine.plan import EditPlan, attend_with
from ...engine.words import SOURCE, Block, Row, Site


@dataclass
class Kept:
    """What the source had at the places of one evaluation."""

    calls: dict[str, Call] = field(default_factory=dict)
    features: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Attention:
    """One call of core's attention function: what it was given, and what else is known of it."""

    function: Callable[..., Tensor]  # core's, or that of whoever replaced it
    q: Tensor  # [B, N, H D], or [B, H, N, D] where `split`
    k: Tensor
    v: Tensor
    heads: int
    mask: Tensor | None
    rest: dict  # its other arguments
    tokens: Tensor | None = None  # [B, N, C] what q is projected from
    project: Callable[[Tensor], tuple[Tensor, Tensor]] | None = None

    @property
    def split(self) -> bool:
        return bool(self.rest.get("skip_reshape"))

    @property
    def axis(self) -> int:
        """Of the tokens, in q, k and v."""
        return 2 if self.split else 1

    @property
    def out_axis(self) -> int:
        """Of the tokens, in what the function gives."""
        return 2 if self.rest.get("skip_output_reshape") else 1

    def plain(self) -> Tensor:
        """As if nobody looked: what core's function gives."""
        return self.function(self.q, self.k, self.v, self.heads, self.mask, **self.rest)


@dataclass(frozen=True, eq=False)
class Pass:
    """The controls of a plan in one pass of the network."""

    evaluation: Evaluation
    plan: EditPlan
    rows: tuple[Row, ...]  # by the number that core gives each conditioning
    kept: Kept
    grid: Callable[[Site | Block], tuple[int, int, int]]
    scope: Callable[[], AbstractContextManager]  # in which gradients pass the network
    now: list[int] = field(default_factory=list)  # which conditionings the network is evaluating
    seen: set[str] = field(default_factory=set)  # layers that were called
    apart: bool = False  # blocks are evaluated again in the backward pass: who only looks does so from outside

    @property
    def of_source(self) -> bool:
        return SOURCE in self.rows

    def tokens(self, place: Site) -> int:
        """Of the clip, at a place that sees all of it."""
        frames, height, width = self.grid(place)
        return frames * height * width

    def function(self, own: Callable[..., Tensor], theirs: Callable[..., Tensor] | None) -> Callable[..., Tensor]:
        """Core's attention with another pack's override around it. Not every function of core's has a backward."""
        own = attention_pytorch if torch.is_grad_enabled() else own
        return own if theirs is None else partial(theirs, own)

    def turn(self, numbers: Sequence[int]) -> None:
        """Told before each evaluation of the network which conditionings are in its batch."""
        self.now[:] = numbers

    def at(self, site: Site, attention: Attention, groups: int) -> Tensor:
        """The output of one attention call, in core's own form, after all controls.

        Args:
            groups: how many a row has that attend among themselves: see `Call`.
        """
        self.seen.add(site.layer)
        chunks = len(self.now)
        if len(set(self.now)) == chunks:
            return self._acted(site, attention, groups, tuple(self.rows[i] for i in self.now))
        parts = zip(*(x.chunk(chunks) for x in (attention.q, attention.k, attention.v)))
        alone = [replace(attention, q=q, k=k, v=v) for q, k, v in parts]  # one row has several conditionings
        return torch.cat([self._acted(site, one, groups, (self.rows[i],)) for i, one in zip(self.now, alone)])

    def _acted(self, site: Site, attention: Attention, groups: int, rows: tuple[Row, ...]) -> Tensor:
        call = self.call(site, attention, groups, rows)

        def innermost(acted: Call) -> Tensor:
            if acted is call:  # untouched: core's own function, bit for bit
                return heads_of(attention.plain(), attention, len(rows), of_output=True)
            return softmax_attention(acted)

        controls = self.plan.acting_at("attention")
        if self.apart:
            controls = [control for control in controls if not control.looks_only]
        return self.core_form(attend_with(controls, innermost)(call), attention)

    def look(self, site: Site, attention: Attention) -> None:
        """Shows a call to the controls that only look: see `apart`."""
        call = self.call(site, attention, 1, tuple(self.rows[i] for i in self.now))
        for control in self.plan.acting_at("attention"):
            if control.looks_only:
                control.attention(call, lambda call: call.v)

    def looked_at(self, site: Site) -> bool:
        return any(c.looks_only and c.looks_at(site) for c in self.plan.acting_at("attention"))

    def call(self, site: Site, attention: Attention, groups: int, rows: tuple[Row, ...]) -> Call:
        q, k, v = (heads_of(x, attention, len(rows)) for x in (attention.q, attention.k, attention.v))
        tokens = attention.tokens
        tokens = q.flatten(2) if tokens is None else rearrange(tokens, "(r g) m c -> r g m c", r=len(rows))
        call = Call(
            site,
            rows,
            q,
            k,
            v,
            self.evaluation.frames,
            self.grid(site),
            q.shape[-1] ** -0.5,
            tokens,
            tokens,
            attention.project or _no_projection,
            self.evaluation.run,
            bias=_bias(attention, len(rows)),
        )
        if self.of_source:
            call = beside(call)
            if call.beside is not None and self._looked_at(site):
                self.kept.calls.setdefault(site.layer, call.beside)
            return call
        return replace(call, beside=self.kept.calls.get(site.layer))

    def core_form(self, out: Tensor, attention: Attention) -> Tensor:
        """[R, G, H, M, D] -> what core's function gives."""
        if attention.rest.get("skip_output_reshape"):
            return rearrange(out, "r g h m d -> (r g) h m d").to(attention.q.dtype)
        return rearrange(out, "r g h m d -> (r g) m (h d)").to(attention.q.dtype)

    def feature(self, block: Block, x: Tensor) -> Tensor:
        """A block's output [B, C, h, w] after all controls."""
        rows = tuple(self.rows[i] for i in self.now)
        features = rearrange(x, "(r f) c h w -> r f c h w", r=len(rows))
        source = self.kept.features.get(block.name)
        if SOURCE in rows:
            source = features[rows.index(SOURCE)][None]
            if self._looked_at(block):
                self.kept.features.setdefault(block.name, source.clone())
        for control in reversed(self.plan.acting_at("feature")):
            features = control.feature(Features(block, features, rows, self.evaluation.run, source))
        return rearrange(features, "r f c h w -> (r f) c h w")

    def _looked_at(self, place: Site | Block) -> bool:
        """Whether a control uses what the source has there."""
        return any(c.needs().source and c.looks_at(place) for c in self.plan.controls)

    def require_seen(self, sites: Sequence[Site]) -> None:
        """ValueError where a layer never asked for its attention, so that no control can have acted there."""
        if missed := [site.layer for site in sites if site.layer not in self.seen]:
            raise ValueError(
                f"the attention at {missed[0]}{' and others' if len(missed) > 1 else ''} was not called as core calls "
                "it, so another node has replaced it on this MODEL: connect the MODEL as it was before that node"
            )


def heads_of(x: Tensor, attention: Attention, rows: int, of_output: bool = False) -> Tensor:
    """Core's form of queries, keys, values or an output -> [R, G, H, M, D]."""
    if attention.rest.get("skip_output_reshape") if of_output else attention.split:
        return rearrange(x, "(r g) h m d -> r g h m d", r=rows)
    return rearrange(x, "(r g) m (h d) -> r g h m d", r=rows, h=attention.heads)


def _bias(attention: Attention, rows: int) -> Tensor | None:
    """Core's mask, as what is added to the logits: [R or 1, G or 1, H or 1, M or 1, L]."""
    mask = attention.mask
    if mask is None:
        return None
    if mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=attention.q.dtype).masked_fill(~mask, -torch.inf)
    while mask.ndim < 4:  # [M, L], [B, M, L] -> [B, 1, M, L]
        mask = mask[None] if mask.ndim == 2 else mask[:, None]
    if len(mask) in (1, rows):
        return mask[:, None]
    return rearrange(mask, "(r g) h m l -> r g h m l", r=rows)


def _no_projection(tokens: Tensor) -> tuple[Tensor, Tensor]:
    raise ValueError("this model's attention does not say how tokens become keys and values: no method of bases here")
