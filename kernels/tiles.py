"""How torch code of this package cuts its work: tiles of whole rows, within a budget of elements."""

from __future__ import annotations

from collections.abc import Iterator

import torch


def tile_budget(device: torch.device) -> int:
    """Elements of one temporary: 1 MB of float32 in a core's cache (4 MB is a third slower), 16 MB for a GPU launch."""
    return 2**18 if device.type == "cpu" else 2**22


def gather_budget(device: torch.device) -> int:
    """Numbers gathered or compared at once: 2 MB of float32 (8 MB is slower), and on a GPU 256 MB: few launches."""
    return 2**19 if device.type == "cpu" else 2**26


def row_tiles(rows: int, row_elements: int, budget: int) -> Iterator[slice]:
    """Slices that cover `rows` rows, each of at most `budget` elements (but never less than one row)."""
    step = max(1, budget // max(1, row_elements))
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def computing_dtype(dtype: torch.dtype) -> torch.dtype:
    """Logits, softmax and sums are taken in float32, or in float64 where the input is float64."""
    return torch.float64 if dtype == torch.float64 else torch.float32
