"""Core's CONDITIONING as a prompt, whole: what else it carries (pooled texts, pictures, masks, hooks) goes along."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ...engine.words import Prompt

ANY = ""  # the encoder of a conditioning that core or another pack made: it does not say who read the text
END_OF_WORD, END_OF_TEXT = "</w>", "<|endoftext|>"
CLIPS = {"l", "g", "h"}  # as core names them


def prompt_of(conditioning: list, text: str = "", tokens: tuple[str, ...] = (), encoder: str = ANY) -> Prompt:
    """A prompt of core's conditioning [[tensor [1 or F, L, E], {...}], ...].

    Raises:
        ValueError: it is empty, or its parts are for different numbers of frames.
    """
    if not isinstance(conditioning, list) or not conditioning:
        raise ValueError("this conditioning is empty: connect CLIP Text Encode, or Encode Prompt (Weft)")
    for entry in conditioning:
        match entry:
            case [tensor, dict()] if tensor is None or (isinstance(tensor, Tensor) and tensor.ndim == 3):
                pass
            case _:
                raise ValueError(
                    "this is no conditioning of ComfyUI's: connect CLIP Text Encode, or Encode Prompt (Weft)"
                )
    counts = {len(entry[0]) for entry in conditioning if entry[0] is not None} - {1}
    if len(counts) > 1:
        raise ValueError(f"the parts of this conditioning are for {sorted(counts)} frames: want one number")
    return Prompt({"conditioning": conditioning}, text, encoder, tokens, counts.pop() if counts else 1)


def conditioning_of(prompt: Prompt) -> list:
    """Core's form of a prompt, in memory of its own: core writes into the pictures that it is given.

    Raises:
        ValueError: a text for each frame that another model of this pack encoded.
    """
    if "conditioning" not in prompt.cond:
        if prompt.frames != 1:
            raise ValueError(f"the prompt '{prompt.text}' has a text for each frame: encode it with this model's CLIP")
        return [[prompt.cond["embedding"].clone(), {}]]
    given = prompt.cond["conditioning"]
    return [[_cloned(tensor), {key: _cloned(value) for key, value in extra.items()}] for tensor, extra in given]


def identity(prompt: Prompt) -> int:
    """The same for a prompt and what is selected from it."""
    return id(prompt.cond.get("conditioning", prompt.cond.get("embedding")))


def _cloned(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


@dataclass(frozen=True, eq=False)
class ComfyText:
    """See `TextEncoder`: a CLIP from core, if there is one. Any conditioning serves these models."""

    name: str
    clip: Any = None
    fingerprint: str = ANY

    def embed(self, text: str) -> Prompt:
        if self.clip is None:
            raise ValueError(
                f"'{self.name}' was given no CLIP to read texts with: connect one to From ComfyUI Model, or connect "
                "core's CLIP Text Encode where the prompt goes"
            )
        tokens = self.clip.tokenize(text)
        return prompt_of(self.clip.encode_from_tokens_scheduled(tokens), text, self._texts(tokens))

    def _texts(self, tokens: dict) -> tuple[str, ...]:
        """The text at each position, a space after a word's end, where CLIPs alone read it (Stable Diffusion 1.x, 2.x,
        XL, whose two cut a text alike); () for other encoders."""
        if not tokens or not set(tokens) <= CLIPS:
            return ()
        texts: list[str] = []
        for part in tokens[min(tokens)]:
            pieces = [piece for _, piece in self.clip.tokenizer.untokenize(part)]
            end = next((i for i, piece in enumerate(pieces) if piece.startswith(END_OF_TEXT)), len(pieces))
            words = ["" if p.startswith("<|") else p.replace(END_OF_WORD, " ") for p in pieces[:end]]
            texts += words + [""] * (len(pieces) - end)  # some fill up with what would read as "!"
        return tuple(texts)
