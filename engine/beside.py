"""What the latents of a clip hold beside its picture: audio. No method touches it; it goes along as it is."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .ports import Backbone


def parts_of(backbone: Backbone, latents: Any) -> tuple[Tensor, Tensor | None]:
    """(the picture's wire latents, what stands beside them).

    Raises:
        ValueError: audio beside the picture, for a model of pictures alone.
    """
    if not getattr(latents, "is_nested", False):
        return latents, None
    if not hasattr(backbone.codec, "apart"):
        raise ValueError(
            f"'{backbone.name}' edits pictures alone, and these latents hold audio too: separate them with ComfyUI's "
            "own node, and connect the video latent"
        )
    return backbone.codec.apart(latents)


def rejoined(backbone: Backbone, picture: Tensor, beside: Tensor | None) -> Any:
    """Wire latents of both parts."""
    return picture if beside is None else backbone.codec.joined(picture, beside)
