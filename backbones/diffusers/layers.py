"""Where the attention layers and the decoder's blocks of a diffusers UNet are, read off their names."""

from __future__ import annotations

import re

from torch import nn

from ...engine.words import Block, Half, Site

_LAYER = re.compile(
    r"((?P<half>down|mid|up)_blocks?\.?(?P<index>\d*)\.)?(?P<list>attentions|temp_attentions|motion_modules|"
    r"transformer_in)"
    r"\.?(?P<item>\d*)\.?transformer_blocks\.0\.(?P<role>attn1|attn2|attn_temp)$"
)
_TEMPORAL = ("temp_attentions", "motion_modules")
_HALVES: dict[str | None, tuple[int, Half]] = {
    None: (0, "encoder"), "down": (1, "encoder"), "mid": (2, "middle"), "up": (3, "decoder"),
}  # fmt: skip


def attention_sites(network: nn.Module) -> tuple[Site, ...]:
    """Every attention layer in the order they run: in each block, spatial before temporal.

    Raises:
        ValueError: a layer is not where the UNets of Stable Diffusion 1.x/2.x and ModelScope have theirs.
    """
    levels, attending = len(network.down_blocks), _attending(network)
    names = [n for n, _ in network.named_modules() if n.endswith((".attn1", ".attn2", ".attn_temp"))]
    sites = []
    for name in sorted(names, key=lambda n: _running_order(_parsed(n, network))):
        found = _parsed(name, network)
        kind, block, level, half = _place(found, levels)
        stage = int(found["index"] or 0)
        place = (attending.index(stage), int(found["item"])) if half == "decoder" and stage in attending else None
        sites.append(Site(name, kind, block, level, len(sites), half, place))
    return tuple(sites)


def decoder_blocks(network: nn.Module) -> tuple[Block, ...]:
    """The decoder's residual blocks and stages in the order they run.

    A residual block is read at its second convolution, which is what it adds to its input (the features of
    plug-and-play diffusion, Tumanyan et al. 2023); a stage at its output, after upsampling (those of DIFT, Tang et
    al. 2023).
    """
    last, attending = len(network.up_blocks) - 1, _attending(network)
    blocks = []
    for i, stage in enumerate(network.up_blocks):
        for j in range(len(stage.resnets)):
            place = (attending.index(i), j) if i in attending else None
            blocks.append(Block(f"up_blocks.{i}.resnets.{j}.conv2", "residual", i, last - i, place))
        blocks.append(Block(f"up_blocks.{i}", "stage", i, max(last - 1 - i, 0)))
    return tuple(blocks)


def _attending(network: nn.Module) -> list[int]:
    """The decoder's stages with attention; in them, one attention layer follows each residual block."""
    return [i for i, stage in enumerate(network.up_blocks) if len(getattr(stage, "attentions", ()))]


def _parsed(name: str, network: nn.Module) -> re.Match[str]:
    found = _LAYER.match(name)
    if found is None:
        raise ValueError(f"unknown attention layer '{name}': this {type(network).__name__} is not supported")
    return found


def _running_order(found: re.Match[str]) -> tuple:
    half, _ = _HALVES[found["half"]]
    return half, int(found["index"] or 0), int(found["item"] or 0), found["list"] in _TEMPORAL, found["role"]


def _place(found: re.Match[str], levels: int) -> tuple[str, str, int, Half]:
    """(kind, block, level, half) of an attention layer."""
    _, half = _HALVES[found["half"]]
    if found["list"] == "transformer_in":
        return "temporal", "transformer_in", 0, half
    kind = {"attn1": "spatial", "attn2": "cross", "attn_temp": "temporal"}[found["role"]]
    kind = "temporal" if found["list"] in _TEMPORAL else kind
    index = int(found["index"] or 0)
    level = {"encoder": index, "middle": levels - 1, "decoder": levels - 1 - index}[half]
    return kind, f"{found['half']}.{index}.{found['item']}", level, half
