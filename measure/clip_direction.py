"""CLIP direction: does an edit lead from what one text says to what another says, and which of several does best?

paper    StyleGAN-NADA, Gal et al. 2021 (arXiv 2108.00946), whose directional loss is 1 - this; InstructPix2Pix, Brooks
         et al. 2023 (arXiv 2211.09800), chose and measured edits by it
needs    a model that puts pictures and texts into one space, as CLIP; a text of the source and one of the edit
gives    a score in -1..1 for each edit of a picture, and the best of them
differs  an edit that is the source, to the model's eye, goes nowhere; the formula is 0/0 there, and we say -1

score = cos(E_I(edit) - E_I(source), E_T(after) - E_T(before)). It asks where an edit goes, not how far, nor what else
it did to the picture.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..vision.ports import Embedder

STILL = 1e-4  # vectors of length 1 that are nearer than this differ by rounding
NOWHERE = -1.0


def direction_of(clip: Embedder, before: str, after: str) -> Tensor:
    """[E] where an edit should lead: E_T(after) - E_T(before).

    Raises:
        ValueError: a text is empty, or the model takes both for the same.
    """
    for name, text, what in (("before", before, "as it is"), ("after", after, "as it should be")):
        if not text.strip():
            raise ValueError(f"'{name}' is empty: describe the frame {what}, as 'a red square on a gray background'")
    first, second = clip.embed_texts([before.strip(), after.strip()])
    if (second - first).norm() < STILL:
        raise ValueError(
            f"to '{clip.name}', '{before.strip()}' and '{after.strip()}' say the same: where should it go?"
        )
    return second - first


def scores(clip: Embedder, source: Tensor, edits: Tensor, direction: Tensor) -> tuple[float, ...]:
    """How well each edit keeps to the direction, in -1..1.

    Args:
        source: [1, H, W, 3] in 0..1.
        edits: [n, H, W, 3] in 0..1.
        direction: [E] of `direction_of`, by the same model.

    Raises:
        ValueError: no single source, no edit, edits of another size, or NaN in one of them.
    """
    _require_edits(source, edits)
    moved = clip.embed_pictures(edits) - clip.embed_pictures(source)
    cosines = F.cosine_similarity(moved, direction[None])
    return tuple(NOWHERE if m < STILL else c for m, c in zip(moved.norm(dim=1).tolist(), cosines.tolist()))


def best(scores: Sequence[float]) -> int:
    """The index of the highest score; the first of equals."""
    return max(range(len(scores)), key=scores.__getitem__)


def told(scores: Sequence[float]) -> str:
    """A line for each candidate, to be read."""
    lines = [f"candidate {i}: {score:.3f}" for i, score in enumerate(scores)]
    lines[best(scores)] += ", taken"
    return "\n".join(("CLIP direction", *lines))


def _require_edits(source: Tensor, edits: Tensor) -> None:
    if source.ndim != 4 or len(source) != 1:
        raise ValueError(f"want one picture [1, H, W, 3] as source, got {list(source.shape)}")
    if edits.ndim != 4 or not len(edits):
        raise ValueError(f"want at least one edit [n, H, W, 3], got {list(edits.shape)}")
    if source.shape[1:] != edits.shape[1:]:
        raise ValueError(f"source and edits differ in size: {list(source.shape)} and {list(edits.shape)}")
    for i, finite in enumerate(torch.cat([source, edits]).isfinite().flatten(1).all(1).tolist()):
        if not finite:
            which = f"candidate {i - 1}" if i else "the source"
            raise ValueError(f"{which} holds NaN or infinite numbers and cannot be judged: load the model in float32")
