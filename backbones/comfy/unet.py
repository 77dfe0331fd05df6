"""Stable Diffusion's UNet in core (1.x, 2.x, XL, InstructPix2Pix): frames are its batch.

paper    the places are those of `backbones/diffusers/layers.py`, so that methods act alike on both
seams    the patches before each attention say whose turn it is; core's attention override does the rest. Core has no
         seam for what a residual block adds, so hooks stay on those modules for the length of one pass
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial

from comfy.ldm.modules.attention import SpatialTransformer, SpatialVideoTransformer
from comfy.ldm.modules.diffusionmodules.openaimodel import Downsample, ResBlock, UNetModel, Upsample
from einops import rearrange
from torch import Tensor, nn

from ...engine.words import Block, Half, Site
from .passes import Attention, Pass

HALVES: dict[str, Half] = {"input": "encoder", "middle": "middle", "output": "decoder"}


class UNet:
    """See `Family`."""

    one_row, audio, channels = False, "none", None

    def __init__(self, network: UNetModel):
        self.network = network
        # Stable Video Diffusion is of this class too, and its frames see each other.
        self.framewise = not any(isinstance(part, SpatialVideoTransformer) for part in network.modules())
        self._layers: dict[tuple, tuple[Site, nn.Module]] = {}  # (which, block, index) as core names a call
        self._hooked: dict[str, nn.Module] = {}
        self.sites, self.blocks = self._find_sites(), self._find_blocks()

    def grid(self, place: Site | Block, shape: Sequence[int]) -> tuple[int, int, int]:
        """A UNet halves the latent at each level, rounding up."""
        frames, _, h, w = shape[-4:]
        return frames, -(-h // 2**place.level), -(-w // 2**place.level)

    # ---- places -----------------------------------------------------------------------------------------------------

    def _parts(self) -> Iterator[tuple[str, int, nn.Module, int, tuple[int, int] | None]]:
        """(half, number, module, level, place in the decoder) of every block of core's, as they run."""
        level = 0
        for i, block in enumerate(self.network.input_blocks):
            yield "input", i, block, level, None
            level += any(_halves(part) for part in block)
        yield "middle", 0, self.network.middle_block, level, None
        stage, layer, attending = 0, 0, [stage for stage in self._stages() if _attends(stage)]
        for i, block in enumerate(self.network.output_blocks):
            here = self._stages()[stage]
            yield "output", i, block, level - stage, (attending.index(here), layer) if here in attending else None
            layer += 1
            if layer == len(here):
                stage, layer = stage + 1, 0

    def _stages(self) -> list[tuple[nn.Module, ...]]:
        """The decoder's blocks by resolution; each stage but the last ends with an upsampling."""
        stages, now = [], []
        for block in self.network.output_blocks:
            now.append(block)
            if any(isinstance(part, Upsample) for part in block):
                stages.append(tuple(now))
                now = []
        return [*stages, tuple(now)] if now else stages

    def _find_sites(self) -> tuple[Site, ...]:
        sites = []
        names = {id(module): name for name, module in self.network.named_modules()}
        for half, number, block, level, place in self._parts():
            for attending in (part for part in block if isinstance(part, SpatialTransformer)):
                for index, transformer in enumerate(attending.transformer_blocks):
                    for which, kind in (("attn1", "spatial"), ("attn2", "cross")):
                        layer = f"{names[id(transformer)]}.{which}"
                        site = Site(layer, kind, f"{half}.{number}", level, len(sites), HALVES[half], place)
                        sites.append(site)
                        self._layers[which, half, number, index] = site, getattr(transformer, which)
        return tuple(sites)

    def _find_blocks(self) -> tuple[Block, ...]:
        blocks, stages = [], self._stages()
        names = {id(module): name for name, module in self.network.named_modules()}
        places = {id(block): (level, place) for half, _, block, level, place in self._parts() if half == "output"}
        for i, stage in enumerate(stages):
            for block in stage:
                level, place = places[id(block)]
                added = next(part for part in block if isinstance(part, ResBlock)).out_layers[-1]
                blocks.append(Block(names[id(added)], "residual", i, level, place))
                self._hooked[blocks[-1].name] = added
            last = stage[-1][-1]
            blocks.append(Block(names[id(last)], "stage", i, max(level - 1, 0)))
            self._hooked[blocks[-1].name] = last
        return tuple(blocks)

    # ---- a pass -----------------------------------------------------------------------------------------------------

    @contextmanager
    def tapped(self, options: dict, one: Pass) -> Iterator[dict]:
        rewriting, reading = one.plan.acting_at("attention"), one.plan.acting_at("feature")
        with ExitStack() as stack:
            for block in self.blocks if reading else ():
                hook = partial(_hook, one, block)
                stack.callback(self._hooked[block.name].register_forward_hook(hook).remove)
            yield self._patched(options, one) if rewriting else options
            if rewriting:
                one.require_seen(self.sites)

    def _patched(self, options: dict, one: Pass) -> dict:
        """The options with a note before every attention of whose turn it is, and the override that acts on it."""
        turn: list[tuple] = []

        def note(which: str, n: Tensor, context: Tensor, value: Tensor, extra: dict):
            turn[:] = [(which, *extra["block"][:2], extra["block_index"]), n]
            return n, context, value

        theirs = options.get("optimized_attention_override")

        def override(function, q, k, v, heads, mask=None, *args, **rest) -> Tensor:
            function = one.function(function, theirs)
            if not turn or args:
                return function(q, k, v, heads, mask, *args, **rest)
            (named, tokens), turn[:] = turn, []
            site, layer = self._layers[named]
            attention = Attention(function, q, k, v, heads, mask, rest, tokens, partial(_projected, layer))
            return one.at(site, attention, len(q) // len(one.now))

        patches = {name: list(some) for name, some in options.get("patches", {}).items()}
        for which in ("attn1", "attn2"):  # after those of others: what the layer is given in the end
            patches[f"{which}_patch"] = [*patches.get(f"{which}_patch", []), partial(note, which)]
        return {**options, "patches": patches, "optimized_attention_override": override}


def _projected(layer: nn.Module, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens [R, G, M, C] -> keys and values [R, G, H, M, D] by the layer's own weights."""
    flat = tokens.flatten(0, 1)
    return tuple(
        rearrange(to(flat), "(r g) m (h d) -> r g h m d", r=len(tokens), h=layer.heads)
        for to in (layer.to_k, layer.to_v)
    )


def _hook(one: Pass, block: Block, module: nn.Module, given, output: Tensor) -> Tensor:
    return one.feature(block, output)


def _halves(part: nn.Module) -> bool:
    return isinstance(part, Downsample) or isinstance(getattr(part, "h_upd", None), Downsample)


def _attends(stage: Sequence[nn.Module]) -> bool:
    return any(isinstance(part, SpatialTransformer) for block in stage for part in block)
