"""A prompt whose embeddings somebody else made, out of a file: one for the whole clip, or one for each frame."""

from __future__ import annotations

from pathlib import Path

from ..engine.ports import Backbone
from ..engine.words import Prompt
from .diffusers.tensor_file import SAFETENSORS, read_tensors
from .diffusers.text import prompt_of

NAME = "embedding"  # of the tensor; a file of one tensor may call it anything


def load_prompt(backbone: Backbone, file: Path, text: str) -> Prompt:
    """A prompt of the embeddings in a file.

    Args:
        backbone: the model that will read them: they must be as wide as those of its own text encoder.
        file: safetensors with a tensor [1 or F, L, E].
        text: what they say, to be shown.

    Raises:
        ValueError: no safetensors, several tensors and none of them called "embedding", another shape or width, or
            values that are no numbers.
    """
    if file.suffix != SAFETENSORS:
        raise ValueError(f"'{file.name}' is no .safetensors: save the embeddings with safetensors.torch.save_file")
    tensors = read_tensors(file)
    if len(tensors) > 1 and NAME not in tensors:
        raise ValueError(f"'{file.name}' holds {', '.join(sorted(tensors))}: want one tensor, or one called '{NAME}'")
    embedding = tensors.get(NAME, next(iter(tensors.values()), None))
    if embedding is None or embedding.ndim != 3 or not embedding.is_floating_point() or not embedding.numel():
        told = "none" if embedding is None else f"{list(embedding.shape)} {embedding.dtype}"
        raise ValueError(f"'{file.name}' holds {told}: want embeddings [1 or F, L, E] in floating point")
    own = backbone.text.embed("").cond["embedding"].shape[-1]
    if embedding.shape[-1] != own:
        raise ValueError(
            f"'{file.name}' has embeddings {embedding.shape[-1]} wide and '{backbone.name}' reads {own}: they were "
            "made for another model"
        )
    if not embedding.isfinite().all():
        raise ValueError(f"'{file.name}' holds NaN or infinity: was it made in float16?")
    return prompt_of(embedding.float(), text, backbone.text.fingerprint)
