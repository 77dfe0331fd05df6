"""The video transformers of core that are known: their blocks, what attends in them and where the picture is."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from .dit import Layers, Transformer
from .no_seam import WithoutSeam

WAN = Layers((("blocks", "double_block"),), ("joint", "cross"), patch=2, others="last")
LTX = Layers((("transformer_blocks", "double_block"),), ("joint", "cross"), others="last")
LTX_AUDIO = replace(LTX, calls=("joint", "cross", None, None, None, None), audio="may")  # then: audio, and each other
HUNYUAN = Layers((("double_blocks", "double_block"), ("single_blocks", "single_block")), ("joint",), patch=2)
MOCHI = Layers((("blocks", "double_block"),), ("joint",), patch=2, others="last")
H3 = Layers((("blocks", "double_block"),), ("joint",), patch=2, one_row=True, audio="must")
COGVIDEOX = Layers((("blocks", "block"),), ("joint",), patch=2)


def wan(network: nn.Module) -> Transformer:
    """Text to video, and what else has its blocks: image to video has one call more in a block, on the picture's
    tokens, unless it is of Wan 2.2; HuMo has one after them, on the sound. Reference frames stand after the
    clip's; that of a network with a layer for it stands before."""
    layers = WAN
    if hasattr(network.blocks[0].cross_attn, "k_img"):
        layers = replace(layers, calls=("joint", None, "cross"))
    if getattr(network, "ref_conv", None) is not None:
        layers = replace(layers, others="first")
    return Transformer(network, layers)


def hunyuan(network: nn.Module) -> Transformer:
    """Older core has the text after the picture."""
    after = getattr(network.double_blocks[0], "flipped_img_txt", False)
    return Transformer(network, replace(HUNYUAN, others="last" if after else "first"))


def ltx(network: nn.Module) -> Transformer:
    return Transformer(network, LTX)


def ltx_audio(network: nn.Module) -> Transformer:
    return Transformer(network, LTX_AUDIO)


def mochi(network: nn.Module) -> Transformer:
    return Transformer(network, MOCHI)


def h3(network: nn.Module) -> Transformer:
    return Transformer(network, replace(H3, channels=network.latents_dim))


def cogvideox(network: nn.Module) -> Transformer:
    """1.5 has two latent frames in a token."""
    return WithoutSeam(network, replace(COGVIDEOX, patch_in_time=network.patch_size_t or 1))
