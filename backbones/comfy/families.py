"""What is known of ComfyUI's networks, by class. A new family: its file, and its line here.

A class that is not in the table still inverts and edits plainly; methods that want its attention say that it has none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Literal, Protocol

from torch import nn

from ...engine.words import Block, Site
from .passes import Pass


class Family(Protocol):
    """The places of one network, and how controls get to them."""

    framewise: bool  # frames are a batch of pictures that do not see each other
    one_row: bool  # it takes one row at a time
    audio: Literal["none", "may", "must"]  # what stands beside the picture in its latents
    channels: int | None  # of the picture's latents; None: as core's format says
    sites: tuple[Site, ...]
    blocks: tuple[Block, ...]

    def grid(self, place: Site | Block, shape: Sequence[int]) -> tuple[int, int, int]:
        """As `Model.grid`."""
        ...

    def tapped(self, options: dict, one: Pass) -> AbstractContextManager[dict]:
        """Core's transformer options with the controls of a pass in them, on top of what is there."""
        ...


class Unknown:
    """A network of a class that is not in the table."""

    sites, blocks = (), ()
    one_row, audio, channels = False, "may", None

    def __init__(self, network: nn.Module, framewise: bool):
        self.framewise = framewise

    def grid(self, place: Site | Block, shape: Sequence[int]) -> tuple[int, int, int]:
        raise ValueError("this network has no places that are known")

    def tapped(self, options: dict, one: Pass) -> AbstractContextManager[dict]:
        raise ValueError("this network has no places that are known")


def family_of(network: nn.Module, framewise: bool) -> Family:
    """The family of a network; `framewise` says what is known of one that is in none."""
    make = FAMILIES.get(type(network).__name__)
    made = None if make is None else make(network)
    if made is None or made.framewise != framewise:
        return Unknown(network, framewise and (made is None or made.framewise))
    return made


def _families() -> dict[str, Callable[[nn.Module], Family]]:
    from . import transformers
    from .unet import UNet

    return {
        "UNetModel": UNet,
        "WanModel": transformers.wan,
        "VaceWanModel": transformers.wan,
        "CameraWanModel": transformers.wan,
        "AnimateWanModel": transformers.wan,
        "HumoWanModel": transformers.wan,
        "LTXVModel": transformers.ltx,
        "LTXAVModel": transformers.ltx_audio,
        "HunyuanVideo": transformers.hunyuan,
        "AsymmDiTJoint": transformers.mochi,
        "CogVideoXTransformer3DModel": transformers.cogvideox,
        "MiniMaxH3Model": transformers.h3,
    }


FAMILIES = _families()
