"""What tells one computation from another: a digest of all that its bits depend on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor


def digest(*values: Any) -> str:
    """16 hex digits of values, by what they hold and not by which objects they are.

    Raises:
        ValueError: something whose content cannot be read, such as a function.
    """
    hashed = hashlib.sha256()
    for piece in _pieces(values):
        hashed.update(len(piece).to_bytes(8, "big") + piece)
    return hashed.hexdigest()[:16]


def _pieces(value: Any) -> Iterator[bytes]:
    if value is None or isinstance(value, (bool, int, float, str, bytes)):
        yield f"{type(value).__name__} {value!r}".encode("utf-8", "surrogatepass")
    elif isinstance(value, Tensor):
        yield f"{value.dtype} {list(value.shape)}".encode()
        yield value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    elif is_dataclass(value) and not isinstance(value, type):
        yield type(value).__qualname__.encode()
        for field in fields(value):
            yield field.name.encode()
            yield from _pieces(getattr(value, field.name))
    elif isinstance(value, Mapping):
        yield f"mapping of {len(value)}".encode()
        for key in sorted(value, key=repr):
            yield from _pieces((key, value[key]))
    elif isinstance(value, (tuple, list, range, set, frozenset)):
        members = sorted(value, key=repr) if isinstance(value, (set, frozenset)) else value
        yield f"{len(value)} values".encode()
        for member in members:
            yield from _pieces(member)
    else:
        raise ValueError(f"a {type(value).__name__} cannot be told from another by what it holds")
