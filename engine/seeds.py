"""Random numbers that depend on what they are for, not on what was drawn before them."""

from __future__ import annotations

import hashlib

import torch


def generator_for(*purpose: int | str) -> torch.Generator:
    """A CPU generator seeded by, say, (seed, step, layer): the same in every run, whatever else draws numbers."""
    digest = hashlib.blake2b(repr(purpose).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big"))
