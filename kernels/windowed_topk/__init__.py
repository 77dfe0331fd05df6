"""The K best matches of every token in the next (or previous) frame, searched in a window: COVE's correspondences."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ..dispatch import Backend, choose, fused_or
from .chunked import windowed_topk_chunked
from .reference import windowed_topk_reference

MAX_K = 64


@torch.no_grad()
def windowed_topk(
    features: Tensor,
    height: int,
    width: int,
    *,
    window: int = 9,
    k: int = 3,
    direction: Literal["forward", "backward"] = "forward",
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor]:
    """Match every token of a frame to the `k` most similar tokens of its neighbour frame (COVE, arXiv:2406.08850).

    Similarity is the dot product, so features should come L2-normalised; they are taken as they are, and must be
    finite. The window is centred on the token's own place and clipped at the borders of the grid, not shifted.
    Nothing is differentiated.

    Args:
        features: [F N D], F >= 2, tokens in row-major order, N = height * width.
        height, width: the token grid.
        window: odd side of the square window, in tokens; 2 * max(height, width) - 1 searches the whole frame.
        k: matches per token.
        direction: "forward": row i holds the matches of frame i's tokens in frame i + 1;
            "backward": row i holds those of frame i + 1's tokens in frame i.
    Returns:
        index: [F-1 N K] int32, place of each match in its frame, best first, equal similarity: lower place first;
            -1 where the window holds fewer than K tokens.
        similarity: [F-1 N K] float32 (float64 for float64 features); -inf where there is no match.
    Raises:
        ValueError: an argument does not fit the above.
    """
    if features.ndim != 3 or not features.is_floating_point():
        raise ValueError(f"want floating-point features [F N D], got {features.dtype} {[*features.shape]}")
    if len(features) < 2:
        raise ValueError("matching needs at least 2 frames, got 1" if len(features) else "there are no frames to match")
    if height < 1 or width < 1 or features.shape[1] != height * width:
        raise ValueError(f"a grid of {height} x {width} does not hold the {features.shape[1]} tokens of a frame")
    if window < 1 or window % 2 == 0:
        raise ValueError(f"the window must be odd, so that it has a centre; got {window}")
    if k < 1:
        raise ValueError(f"want at least one match per token, got k = {k}")
    if direction not in ("forward", "backward"):
        raise ValueError(f"direction is 'forward' or 'backward', not {direction!r}")
    source, target = features[:-1], features[1:]
    if direction == "backward":
        source, target = target, source
    obstacle = f"k = {k} is over {MAX_K}" if k > MAX_K else None
    chosen = choose(backend, features, obstacle)
    if chosen == "triton":
        fused = fused_or(windowed_topk_chunked, "windowed_topk.fused", "windowed_topk_fused", backend)
        with torch.cuda.device_of(features):  # Triton launches on the current device
            return fused(source, target, height, width, window, k)
    implementation = windowed_topk_reference if chosen == "reference" else windowed_topk_chunked
    return implementation(source, target, height, width, window, k)
