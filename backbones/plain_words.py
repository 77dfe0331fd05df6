"""What goes wrong with somebody's file is said in one line about that file, whatever a library made of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

LONGEST = 500  # characters of a library's own message
OURS = 700  # of one that says what to do already


@contextmanager
def in_plain_words(what: str, *, ours: bool = True) -> Iterator[None]:
    """Turns any error but a lack of memory into a ValueError: "cannot load `what`: ...".

    Files lie in more ways than can be foreseen, and libraries raise whatever there is, tokenizers bare exceptions.

    Args:
        ours: a ValueError of one line is in plain words already. Else it is a library's like all others.
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError):
        raise  # ComfyUI frees memory and advises on this type alone
    except Exception as error:
        told = str(error)
        if ours and type(error) is ValueError and "\n" not in told and 0 < len(told) <= OURS:
            raise
        told = " ".join(told.split()) or "no more is known"
        told = told if len(told) <= LONGEST else f"{told[:LONGEST]} ..."
        told = told if isinstance(error, ValueError) else f"{type(error).__name__}: {told}"
        raise ValueError(f"cannot load {what}: {told}") from error
