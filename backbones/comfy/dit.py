"""Core's video transformers: all tokens of a clip attend to each other. Which there are: `transformers.py`.

seams    core's `dit` patches wrap each block, which so is told its name by a copy of its options; core's attention
         override acts on the calls inside it, told apart by their order. What others put there stays within ours

Beside the tokens of the picture a joint sequence may hold those of a text, or of reference frames. Controls see the
queries of the picture alone, in the order (t, h, w), and the keys with the picture's last: the others attend as ever.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from ...engine.words import Block, Half, Site
from .passes import Attention, Pass
from .recompute import frozen, recomputed

PLACE = "weft_place"  # in the options of a block: which it is, and how many calls it has made
STREAMS = ("img", "txt")  # what a block is given and gives back
Key = tuple[str, int]  # as core names a block


@dataclass(frozen=True)
class Layers:
    """Of one class of networks: its lists of blocks, and what their attention calls are, in order."""

    lists: tuple[tuple[str, str], ...]  # (attribute of the network, core's name), as they run
    calls: tuple[Literal["joint", "cross"] | None, ...]  # None: one that is no place for controls
    patch: int = 1  # latent cells in a token, along each side
    others: Literal["first", "last"] = "first"  # where tokens stand that are not of the picture
    patch_in_time: int = 1  # latent frames in a token
    one_row: bool = False  # takes a batch of one
    audio: Literal["none", "may", "must"] = "none"  # what may or must stand beside the picture in its latents
    channels: int | None = None  # of the picture's latents, where the format says something else


@dataclass
class Place:
    """Where in the network a call comes from."""

    key: Key
    calls: int = 0
    read: dict[str, Attention] | None = None  # of each site, in passes with gradients


class Transformer:
    """See `Family`."""

    framewise = False
    blocks: tuple[Block, ...] = ()

    def __init__(self, network: nn.Module, layers: Layers):
        self.network, self.layers = network, layers
        self.one_row, self.audio, self.channels = layers.one_row, layers.audio, layers.channels
        self._sites: dict[tuple[Key, int], Site] = {}  # by block, and number of the call in it
        for attribute, kind in layers.lists:
            for index in range(len(getattr(network, attribute))):
                for number, what in enumerate(layers.calls):
                    if what is not None:
                        name = f"{attribute}.{index}"
                        layer = f"{name}.{'self' if what == 'joint' else 'cross'}"
                        self._sites[(kind, index), number] = Site(
                            layer, what, name, 0, len(self._sites), self._half(name)
                        )
        self.sites: tuple[Site, ...] = tuple(self._sites.values())
        self._named = {site.layer: site for site in self.sites}

    def _half(self, name: str) -> Half:
        """The second half of the blocks is what a UNet's decoder is: layout is settled, content is not."""
        names = [f"{at}.{i}" for at, _ in self.layers.lists for i in range(len(getattr(self.network, at)))]
        return "decoder" if names.index(name) >= len(names) // 2 else "encoder"

    def grid(self, place: Site | Block, shape: Sequence[int]) -> tuple[int, int, int]:
        """Odd sizes are filled up to whole tokens."""
        frames, _, h, w = shape[-4:]
        return -(-frames // self.layers.patch_in_time), -(-h // self.layers.patch), -(-w // self.layers.patch)

    @contextmanager
    def tapped(self, options: dict, one: Pass) -> Iterator[dict]:
        if not one.plan.acting_at("attention"):
            yield options
            return
        replaced = options.get("patches_replace", {})
        theirs = replaced.get("dit", {})
        ours = {key: partial(self._block, one, key, theirs.get(key)) for key in {key for key, _ in self._sites}}
        override = partial(self._attention, one, options.get("optimized_attention_override"))
        yield {
            **options,
            "patches_replace": {**replaced, "dit": {**theirs, **ours}},
            "optimized_attention_override": override,
        }
        one.require_seen(self.sites)

    # ---- one block --------------------------------------------------------------------------------------------------

    def _block(self, one: Pass, key: Key, theirs: Callable | None, args: dict, extra: dict) -> dict:
        """A block that knows its name. With gradients it is evaluated again in the backward pass, and not kept."""
        original = extra["original_block"]
        original = frozen(original) if torch.is_grad_enabled() else original
        extra = {**extra, "original_block": original}

        def inner(given: dict, place: Place) -> dict:
            given = {**given, "transformer_options": {**given["transformer_options"], PLACE: place}}
            return original(given) if theirs is None else theirs(given, extra)

        if not torch.is_grad_enabled():
            return inner(args, Place(key))
        return self._kept_small(one, key, inner, args)

    def _kept_small(self, one: Pass, key: Key, inner: Callable[[dict, Place], dict], args: dict) -> dict:
        """The same with gradients; controls that only look are shown calls that gradients pass."""
        made: list[tuple[dict, dict[str, Attention]]] = []  # of the forward pass: all that it gave

        def body(*streams: Tensor) -> tuple[Tensor, ...]:
            place = Place(key, read={})
            out = inner({**args, **_streams_of(args, iter(streams))}, place)
            if not made:
                made.append((out, place.read))
            read = [x.clone() for attention in place.read.values() for x in (attention.q, attention.k)]
            return (*_flat(out), *read)

        outputs = iter(recomputed(body, one.scope, *_flat(args)))
        ((out, read),) = made
        out = {**out, **_streams_of(out, outputs)}
        for layer, attention in read.items():
            one.look(self._named[layer], replace(attention, q=next(outputs), k=next(outputs)))
        return out

    # ---- one call ---------------------------------------------------------------------------------------------------

    def _attention(
        self, one: Pass, theirs: Callable | None, function, q, k, v, heads, mask=None, *args, **rest
    ) -> Tensor:
        function = one.function(function, theirs)
        place: Place | None = (rest.get("transformer_options") or {}).get(PLACE)
        site = self._sites.get((place.key, place.calls)) if place else None
        if place:
            place.calls += 1
        if site is None or args:
            return function(q, k, v, heads, mask, *args, **rest)
        whole = Attention(function, q, k, v, heads, mask, rest)
        order = self._order(whole, site, one)
        picture = whole if order is None else _of_picture(whole, site, order, one.tokens(site))
        if place.read is not None and one.looked_at(site):
            place.read[site.layer] = picture
        return one.at(site, whole, 1) if order is None else _rejoined(one, site, whole, picture, order)

    def _order(self, whole: Attention, site: Site, one: Pass) -> Tensor | None:
        """Positions of the other queries, then of the picture's; None where there are no others."""
        count, tokens = whole.q.shape[whole.axis], one.tokens(site)
        if count < tokens:
            raise ValueError(
                f"{site.layer} sees {count} tokens where the clip has {tokens}: context windows cut it up, and methods "
                "that act on attention want the whole clip; connect the MODEL as it was before that node"
            )
        if count == tokens:
            return None
        after = 0 if self.layers.others == "first" else count - tokens
        return torch.arange(count, device=whole.q.device).roll(after)


def _flat(args: dict) -> list[Tensor]:
    """The streams among a block's arguments. One that has a part for audio is a tuple."""
    return [x for name in STREAMS if args.get(name) is not None for x in _parts(args[name])]


def _streams_of(args: dict, streams: Iterator[Tensor]) -> dict:
    """The same, in the form that they have there."""
    made = {}
    for name in STREAMS:
        if args.get(name) is not None:
            parts = tuple(next(streams) for _ in _parts(args[name]))
            made[name] = parts[0] if isinstance(args[name], Tensor) else parts
    return made


def _parts(stream: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (stream,) if isinstance(stream, Tensor) else tuple(stream)


def _of_picture(whole: Attention, site: Site, order: Tensor, tokens: int) -> Attention:
    """The call of the picture's queries alone; in joint attention its keys come last."""
    q = whole.q.index_select(whole.axis, order[-tokens:])
    mask = _rows(whole.mask, len(order), order[-tokens:])
    if site.kind == "cross":
        return replace(whole, q=q, mask=mask)
    k, v = (x.index_select(whole.axis, order) for x in (whole.k, whole.v))
    return replace(whole, q=q, k=k, v=v, mask=None if mask is None else mask.index_select(-1, order))


def _rejoined(one: Pass, site: Site, whole: Attention, picture: Attention, order: Tensor) -> Tensor:
    """The output for all queries, of which the picture's went through the controls."""
    tokens, axis, plain = one.tokens(site), whole.out_axis, []

    def untouched(*args, **rest) -> Tensor:
        plain.append(whole.plain())
        return plain[0].index_select(axis, order[-tokens:])

    acted = one.at(site, replace(picture, function=untouched), 1)
    if plain:
        return plain[0].index_copy(axis, order[-tokens:], acted)
    others = order[:-tokens]
    rest = replace(whole, q=whole.q.index_select(whole.axis, others), mask=_rows(whole.mask, len(order), others))
    return torch.cat([rest.plain(), acted], axis).index_select(axis, order.argsort())


def _rows(mask: Tensor | None, count: int, at: Tensor) -> Tensor | None:
    """A mask [..., M or 1, L] for some of its queries."""
    if mask is None or mask.ndim < 2 or mask.shape[-2] != count:
        return mask
    return mask.index_select(-2, at)
