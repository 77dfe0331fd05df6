"""A long clip through a function of frames, as many at a time as memory bears."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor

log = logging.getLogger(__name__)


def run_in_parts(function: Callable[[Tensor], Tensor], clip: Tensor, at_once: int) -> Tensor:
    """`function` of a clip, of at most `at_once` frames at a time, and of half as many from where memory runs out.

    What comes out is written into one tensor and not put together: a minute of 512x512 is 4.5 GB, and would be there
    twice.

    Args:
        function: [n, ...] -> [n, ...], each frame by itself; it may be called again with frames it failed on.
        clip: [F, ...] with F >= 1.

    Returns:
        [F, ...], where and of the dtype that `function` gives.

    Raises:
        torch.OutOfMemoryError: not even one frame fits.
    """
    whole, first, at_once = None, 0, min(at_once, len(clip))
    while first < len(clip):
        try:
            part = function(clip[first : first + at_once])
        except torch.OutOfMemoryError:
            if at_once == 1:
                raise
            part = None  # tried again below, where the error no longer holds what it was raised over
        if part is None:
            at_once = (at_once + 1) // 2
            log.warning("out of memory: going on with %d of %d frames at a time", at_once, len(clip))
            continue
        whole = part.new_empty(len(clip), *part.shape[1:]) if whole is None else whole
        whole[first : first + len(part)] = part
        first += len(part)
    return whole
