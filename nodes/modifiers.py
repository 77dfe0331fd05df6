"""What ComfyUI's own nodes put on a conditioning or a latent: refused in words, where it would be ignored."""

from __future__ import annotations

from typing import Any

CONDITIONING = {  # what a core node left on it -> what it is called, and what does that here
    "start_percent": ("a timestep range", "give the method itself a start and an end"),
    "end_percent": ("a timestep range", "give the method itself a start and an end"),
    "mask": ("a mask", "use 'Region (Weft)' with that mask"),
    "area": ("an area", "use 'Region (Weft)' with a mask of that area"),
    "strength": ("a strength", "use 'Region (Weft)' with that strength"),
    "control": ("a ControlNet", "take it away"),
    "hooks": ("hooks", "take them away"),
}


def require_plain(conditioning: list) -> None:
    """Refuses a conditioning of this pack that core's nodes have changed since.

    Raises:
        ValueError: it is combined with others, joined to another, or carries what no node here reads.
    """
    if len(conditioning) != 1:
        raise ValueError(
            f"this conditioning combines {len(conditioning)} prompts, and an edit has one: use one 'Encode Prompt "
            "(Weft)' with the whole text, or a 'Region (Weft)' for each"
        )
    embedding, extra = conditioning[0]
    ours = {"pooled_output", *(key for key in extra if key.startswith("weft_"))}
    if changed := [key for key, value in extra.items() if key not in ours and value is not None]:
        what, instead = CONDITIONING.get(changed[0], (f"'{changed[0]}'", "take the node away that puts it there"))
        raise ValueError(f"this conditioning has {what} on it, which would be ignored: {instead}")
    tokens = len(extra.get("weft_tokens", ()))
    if tokens and embedding.shape[-2] != tokens:
        raise ValueError(
            f"this conditioning is joined from several ({embedding.shape[-2]} tokens, and the text has {tokens}): "
            "write the whole text in one 'Encode Prompt (Weft)'"
        )


def latents_of(latent: dict) -> Any:
    """The latents (a Tensor) on a LATENT wire. ValueError for a noise mask, which nothing here reads."""
    if latent.get("noise_mask") is not None:
        raise ValueError(
            "this latent has a noise mask on it, which would be ignored: connect the mask to 'Latent Blend (Weft)', "
            "'Region (Weft)' or the mask of 'Coupled Edit (Weft)' instead"
        )
    return latent["samples"]
