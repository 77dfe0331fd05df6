"""The STR score of a model whose tokens attend to each other across space and time at once, of its own 3-D map.

With A the full softmax over all keys, the relation of place p to place q of frame i through its neighbours in time is

    Omega_i[p, q] = mean over heads, sum over j in N(i) of  A[(i,p), (j,q)] + A[(j,q), (i,p)]

the quantity that the paper's product of a spatial and a temporal map stands for. The full map of a layer has billions
of entries: it is made tile by tile, and made again in the backward pass.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..tiles import computing_dtype, row_tiles, tile_budget
from .reference import near


def str_rows_full(
    q_src: Tensor,
    k_src: Tensor,
    q_tgt: Tensor,
    k_tgt: Tensor,
    frames: int,
    *,
    neighbours: int = 1,
    scale: float | None = None,
    per_head: bool = False,
    bias_src: Tensor | None = None,
    bias_tgt: Tensor | None = None,
) -> Tensor:
    """Row statistics as `str_rows` gives them, from the full 3-D map.

    Args:
        q_src, q_tgt: [H, F N, D] queries of the picture's tokens, frame after frame.
        k_src, k_tgt: [H, L, D] keys, the picture's F N first; the others (a text's) count in the softmax alone.
        frames: F, at least 2.
        neighbours, scale, per_head: as `str_rows`.
        bias_src, bias_tgt: [L] added to the logits.
    Returns:
        [F N 3] float32 (float64 for float64 inputs), [H F N 3] with `per_head`. Differentiable in q_tgt and k_tgt.
    Raises:
        ValueError: shapes that do not go together, or fewer than 2 frames.
    """
    if frames < 2:
        raise ValueError(f"the STR score compares neighbouring frames: want 2 or more, got {frames}")
    if q_src.shape != q_tgt.shape or q_src.shape[1] % frames:
        raise ValueError(f"want q [H, F N, D] of {frames} frames, got {list(q_src.shape)} and {list(q_tgt.shape)}")
    for q, k in ((q_src, k_src), (q_tgt, k_tgt)):
        if k.ndim != 3 or k.shape[0] != q.shape[0] or k.shape[1] < q.shape[1] or k.shape[2] != q.shape[2]:
            raise ValueError(f"want k [H, L, D] with the {q.shape[1]} of the picture first, got {list(k.shape)}")
    scale = q_src.shape[-1] ** -0.5 if scale is None else scale
    with torch.no_grad():
        source = _Side(q_src.detach(), k_src.detach(), frames, neighbours, scale, bias_src)
    target = _Side(q_tgt, k_tgt, frames, neighbours, scale, bias_tgt)
    heads, places = q_src.shape[0], q_src.shape[1] // frames
    tiles = list(row_tiles(places, heads * places, tile_budget(q_src.device)))

    def rows(i: int, tile: slice) -> Tensor:
        """[H or 1, n, 3] of some places of one frame."""
        with torch.no_grad():
            a = source.score(i, tile, per_head)
        b = target.score(i, tile, per_head)
        return torch.stack([(a * b).sum(-1), (a * a).sum(-1), (b * b).sum(-1)], -1)

    out = torch.stack([torch.cat([_again(rows, i, tile) for tile in tiles], 1) for i in range(frames)], 1)
    return out if per_head else out[0]


class _Side:
    """One side's queries and keys, and what each row of its map adds up to."""

    def __init__(self, q: Tensor, k: Tensor, frames: int, neighbours: int, scale: float, bias: Tensor | None):
        work, tokens = computing_dtype(q.dtype), q.shape[1]
        self.q, every = q.to(work) * scale, k.to(work)
        self.frames, self.neighbours = frames, neighbours
        self.places = tokens // frames
        self.k = every[:, :tokens]
        self.bias = None if bias is None else bias[:tokens].to(work)

        def total(tile: slice) -> Tensor:
            logits = self.q[:, tile] @ every.mT
            return (logits if bias is None else logits + bias.to(work)).logsumexp(-1)

        tiles = row_tiles(tokens, q.shape[0] * k.shape[1], tile_budget(q.device))
        self.total = torch.cat([_again(total, tile) for tile in tiles], 1)  # [H, F N]

    def score(self, i: int, tile: slice, per_head: bool) -> Tensor:
        """Omega_i[tile], [H or 1, n, N]."""
        here, omega = self._of(i, tile), 0
        for j in near(i, self.frames, self.neighbours):
            there = self._of(j, slice(0, self.places))
            to, back = self._map(here, there), self._map(there, here).mT
            omega = omega + (to + back if per_head else (to + back).mean(0, keepdim=True))
        return omega

    def _of(self, frame: int, tile: slice) -> slice:
        start = frame * self.places
        return slice(start + tile.start, start + tile.stop)

    def _map(self, rows: slice, columns: slice) -> Tensor:
        """[H, rows, columns] of the full softmax."""
        logits = self.q[:, rows] @ self.k[:, columns].mT
        if self.bias is not None:
            logits = logits + self.bias[columns]
        return (logits - self.total[:, rows, None]).exp()


def _again(function, *args) -> Tensor:
    return checkpoint(function, *args, use_reentrant=False) if torch.is_grad_enabled() else function(*args)
