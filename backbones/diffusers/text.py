"""A CLIP-like text encoder, as a `TextEncoder`. What a prompt's `cond` holds: `embedding` [1 or F, L, E]."""

from __future__ import annotations

import torch
from einops import repeat
from torch import Tensor, nn

from ...engine.autograd import ordinary, plain_torch
from ...engine.words import Prompt, require_text
from ..memory import Memory
from . import parts, tokens


class ClipText:
    """See `TextEncoder`."""

    def __init__(self, encoder: nn.Module, tokenizer, memory: Memory):
        self.encoder, self.tokenizer, self.memory = encoder, tokenizer, memory
        self.fingerprint = parts.fingerprint(encoder)

    @plain_torch
    def embed(self, text: str) -> Prompt:
        require_text(text)
        with self.memory.resident(self.encoder):
            embedding = tokens.embed_text(self.tokenizer, self.encoder, text, self.memory.device).cpu()
        return prompt_of(embedding, text, self.fingerprint, tokens.token_texts(self.tokenizer, text))


def prompt_of(embedding: Tensor, text: str, encoder: str, tokens: tuple[str, ...] = ()) -> Prompt:
    """A prompt of an embedding [1, L, E], or [F, L, E] for a text per frame."""
    return Prompt({"embedding": embedding}, text, encoder, tokens, len(embedding))


def embedding_for(prompt: Prompt, frames: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """[F, L, E] of a prompt for so many frames. ValueError if it is for another number."""
    embedding = ordinary(prompt.cond["embedding"]).to(device, dtype)
    if len(embedding) not in (1, frames):
        raise ValueError(f"the prompt '{prompt.text}' is for {len(embedding)} frames, and this is {frames}")
    return repeat(embedding, "1 l e -> f l e", f=frames) if len(embedding) == 1 else embedding
