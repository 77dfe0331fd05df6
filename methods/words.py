"""Words of two prompts and their tokens: which of the source's attention maps goes to which token of the target.

source   Prompt-to-Prompt, Hertz et al. 2022 (arXiv 2208.01626), section 3.2, as FateZero uses it

Every L below is the number of tokens a model takes, the same for all its prompts.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

import torch
from torch import Tensor

from ..engine.words import Prompt


@dataclass(frozen=True, eq=False)
class TokenMap:
    """Maps of the edit: A[:, j] = sum over i of A_source[:, i] taken[i, j] + A_edit[:, j] kept[j]."""

    taken: Tensor  # [L, L]
    kept: Tensor  # [L]

    def to(self, device: torch.device) -> TokenMap:
        return TokenMap(self.taken.to(device), self.kept.to(device))


def words_of(prompt: Prompt) -> list[tuple[str, list[int]]]:
    """The prompt's words in order, each with the positions of its tokens.

    Raises:
        ValueError: the prompt does not say what its tokens are.
    """
    if not any(prompt.tokens):
        raise ValueError(f"the prompt '{prompt.text}' has no words: encode a text with this model")
    words, text, places = [], "", []
    for at, piece in enumerate(prompt.tokens):
        if piece:
            text, places = text + piece, [*places, at]
            if piece.endswith(" "):
                words.append((_alike(text), places))
                text, places = "", []
    return words + ([(_alike(text), places)] if places else [])


def positions(prompt: Prompt, word: str) -> list[int]:
    """Of all tokens of a word, wherever it stands in the prompt; or of words in a row that make it up, as a tokenizer
    may cut "t-shirt" and "2024".

    Raises:
        ValueError: it is not there.
    """
    words, wanted = words_of(prompt), _alike(word)
    for most in (1, len(words)):
        runs = [words[i:j] for i in range(len(words)) for j in range(i + 1, min(i + most, len(words)) + 1)]
        found = [run for run in runs if "".join(text for text, _ in run) == wanted]
        if found:
            return sorted({at for run in found for _, places in run for at in places})
    raise ValueError(
        f"the prompt '{prompt.text}' does not have the word '{word}': its words are {', '.join(w for w, _ in words)}"
    )


def refined(source: Prompt, target: Prompt) -> TokenMap:
    """Tokens that both prompts have, in the same order, take the source's map; new ones keep the edit's own.

    The target's end takes the source's, wherever that stands, and the padding after it the source's padding.
    """
    length = _length(source, target)
    taken, kept = torch.zeros(length, length), torch.ones(length)
    ends = [1 + max(at for _, places in words_of(p) for at in places) for p in (source, target)]
    matcher = SequenceMatcher(None, source.tokens[: ends[0]], target.tokens[: ends[1]], autojunk=False)
    pairs = [(b.a + i, b.b + i) for b in matcher.get_matching_blocks() for i in range(b.size)]
    for i, j in pairs + _after(ends, length):
        taken[i, j], kept[j] = 1, 0
    return TokenMap(taken, kept)


def replaced(source: Prompt, target: Prompt) -> TokenMap:
    """Word i of the target takes the maps of word i of the source, whatever the words.

    Raises:
        ValueError: the prompts have different numbers of words.
    """
    length = _length(source, target)
    words = [words_of(p) for p in (source, target)]
    if len(words[0]) != len(words[1]):
        raise ValueError(
            f"'{source.text}' has {len(words[0])} words and '{target.text}' {len(words[1])}: to replace words write "
            "prompts of equally many, or choose refine"
        )
    taken, ends = torch.zeros(length, length), [0, 0]
    for (_, old), (_, new) in zip(*words):
        _identity(taken, range(ends[0], old[0]), range(ends[1], new[0]))
        if len(old) == len(new):
            _identity(taken, old, new)
        else:
            taken[torch.tensor(old)[:, None], torch.tensor(new)] = 1 / len(new)
        ends = [old[-1] + 1, new[-1] + 1]
    for i, j in _after(ends, length):
        taken[i, j] = 1
    return TokenMap(taken, torch.zeros(length))


def weights(prompt: Prompt, factors: Sequence[tuple[str, float]]) -> Tensor:
    """[L]: the factors of these words, 1 for all others. ValueError for a word that is not there."""
    out = torch.ones(len(prompt.tokens))
    for word, factor in factors:
        out[positions(prompt, word)] = factor
    return out


def read_words(text: str) -> tuple[str, ...]:
    """ "square, red" or "square red" -> its words."""
    return tuple(text.replace(",", " ").split())


def read_factors(text: str) -> tuple[tuple[str, float], ...]:
    """ "square=2, red=0.5" -> its words and factors. ValueError for anything else."""
    try:
        pairs = [part.rsplit("=", 1) for part in text.split(",") if part.strip()]
        return tuple((word.strip(), float(factor)) for word, factor in pairs)
    except ValueError:
        raise ValueError(f"want words with factors, as in 'square=2, red=0.5', got '{text}'") from None


def _alike(text: str) -> str:
    """A word without case and spaces, its accents written in one way, and its characters put together again."""
    whole = text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return unicodedata.normalize("NFC", "".join(whole.split())).lower()


def _after(ends: Sequence[int], length: int) -> list[tuple[int, int]]:
    """(source, target) positions of the end tokens and the padding; where the source has less of it, its last."""
    return [(min(ends[0] + j - ends[1], length - 1), j) for j in range(ends[1], length)]


def _identity(taken: Tensor, old: Sequence[int], new: Sequence[int]) -> None:
    for i, j in zip(old, new):
        taken[i, j] = 1


def _length(source: Prompt, target: Prompt) -> int:
    if len(source.tokens) != len(target.tokens):
        raise ValueError(
            f"the prompts have {len(source.tokens)} and {len(target.tokens)} tokens: encode both with the same model"
        )
    return len(source.tokens)
