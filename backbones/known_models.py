"""The models that the papers and the shipped workflows name: which files, where from, where to put them.

Nothing is downloaded at run time. Names of repositories are those on Hugging Face.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

FOLDER = "the whole folder, with model_index.json"


@dataclass(frozen=True)
class Known:
    """A model somebody may lack."""

    title: str
    files: str  # what is wanted
    source: str
    place: str  # below ComfyUI's folder


KNOWN = {
    "lavie": Known(
        "LaVie",
        "lavie_base.pt, and beside it the folder stable-diffusion-v1-4 with vae, text_encoder, tokenizer and scheduler",
        "Vchitect/LaVie, CompVis/stable-diffusion-v1-4",
        "models/diffusers/lavie",
    ),
    "zeroscope_v2_576w": Known("Zeroscope", FOLDER, "cerspense/zeroscope_v2_576w", "models/diffusers"),
    "text-to-video-ms-1.7b": Known("ModelScope", FOLDER, "ali-vilab/text-to-video-ms-1.7b", "models/diffusers"),
    "CogVideoX-2b": Known("CogVideoX 2b", FOLDER, "zai-org/CogVideoX-2b", "models/diffusers"),
    "CogVideoX-5b": Known("CogVideoX 5b", FOLDER, "zai-org/CogVideoX-5b", "models/diffusers"),
    "stable-diffusion-v1-5": Known(
        "Stable Diffusion 1.5", FOLDER, "stable-diffusion-v1-5/stable-diffusion-v1-5", "models/diffusers"
    ),
    "stable-diffusion-2-1-base": Known(
        "Stable Diffusion 2.1", FOLDER, "a repository that has stable-diffusion-2-1-base", "models/diffusers"
    ),
    "checkpoints/v1-5-pruned-emaonly.safetensors": Known(
        "Stable Diffusion 1.5",
        "v1-5-pruned-emaonly.safetensors",
        "stable-diffusion-v1-5/stable-diffusion-v1-5",
        "models/checkpoints",
    ),
    "instruct-pix2pix": Known("InstructPix2Pix", FOLDER, "timbrooks/instruct-pix2pix", "models/diffusers"),
    "v3_sd15_mm.ckpt": Known(
        "AnimateDiff's motion module v3", "v3_sd15_mm.ckpt", "guoyww/animatediff", "models/animatediff_models"
    ),
    "mm_sd_v15_v2.ckpt": Known(
        "AnimateDiff's motion module v2", "mm_sd_v15_v2.ckpt", "guoyww/animatediff", "models/animatediff_models"
    ),
}


def missing(name: str, found: Iterable[str]) -> str:
    """What to say where there is no model of this name: what to get, if it is a known one, and what there is."""
    there = f"found {', '.join(found) or 'none'} (press R to look again)"
    if (known := KNOWN.get(name)) is None:
        return f"no model '{name}': {there}"
    return (
        f"no model '{name}': {known.title} wants {known.files}, in {known.place}; get it from {known.source} on "
        f"Hugging Face, as nothing is downloaded here; {there}"
    )
