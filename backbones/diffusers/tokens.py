"""A text as a tokenizer and a text encoder of transformers read it."""

from __future__ import annotations

import logging
import re

import torch
from torch import Tensor, nn

log = logging.getLogger(__name__)
MARKS = re.compile(r"\([^()]*:\s*[\d.]+\s*\)|\bembedding:\S+")  # of ComfyUI's own text nodes
END_OF_WORD, START_OF_WORD = "</w>", "▁"  # as CLIP's tokenizer writes the one, and sentencepiece the other


def embed_text(tokenizer, encoder: nn.Module, text: str, device: torch.device) -> Tensor:
    """[1, L, E] last hidden state, padded to the tokenizer's length as Stable Diffusion is trained."""
    tokens = _tokenized(tokenizer, text)
    _tell_what_is_not_read(tokenizer, text)
    # OpenCLIP-style encoders (SD 2.x, Zeroscope) attend over the padding as well, unless their config says otherwise.
    mask = tokens.attention_mask.to(device) if getattr(encoder.config, "use_attention_mask", False) else None
    return encoder(tokens.input_ids.to(device), attention_mask=mask)[0].float()


def _tell_what_is_not_read(tokenizer, text: str) -> None:
    """One line in the log for the end of a text that is too long, and for what means something in other nodes."""
    longest = tokenizer.model_max_length
    ids = tokenizer(text, verbose=False).input_ids
    if len(ids) > longest:
        cut = tokenizer.decode(ids[longest - 1 : -1])  # the last that is read says that the text ends
        log.warning(
            "a prompt of %d tokens is longer than the %d that are read, and is cut: '%s'", len(ids), longest, cut
        )
    if marks := MARKS.findall(text):
        log.warning("read as they stand, as weights and embeddings mean nothing here: %s", ", ".join(marks))


def token_texts(tokenizer, text: str) -> tuple[str, ...]:
    """What each position of `embed_text` stands for, as in `Prompt.tokens`."""
    tokens = _tokenized(tokenizer, text)
    ids, given = tokens.input_ids[0].tolist(), tokens.attention_mask[0].tolist()
    pieces = _spelled(tokenizer.convert_ids_to_tokens(ids))
    return tuple(p if here and i not in tokenizer.all_special_ids else "" for p, i, here in zip(pieces, ids, given))


def _spelled(pieces: list[str]) -> list[str]:
    """Tokens as text, a space after a word's end: CLIP marks where words end, sentencepiece where they begin."""
    if not any(piece.startswith(START_OF_WORD) for piece in pieces):
        return [_of_bytes(piece.removesuffix(END_OF_WORD)) + " " * piece.endswith(END_OF_WORD) for piece in pieces]
    following = [*pieces[1:], START_OF_WORD]
    last = [after.startswith((START_OF_WORD, "<")) for after in following]  # <: a special token
    return [p.removeprefix(START_OF_WORD) + " " * end for p, end in zip(pieces, last)]


def _of_bytes(word: str) -> str:
    """CLIP's tokenizer writes each byte as a letter of its own; a piece may end within a character, whose bytes are
    then kept as Python keeps bytes that are no text (PEP 383) until the word is whole."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    letters = {letter: byte for byte, letter in bytes_to_unicode().items()}
    if not all(letter in letters for letter in word):
        return word
    return bytes(letters[letter] for letter in word).decode("utf-8", "surrogateescape")


def _tokenized(tokenizer, text: str):
    return tokenizer(
        text, padding="max_length", max_length=tokenizer.model_max_length, truncation=True, return_tensors="pt"
    )
