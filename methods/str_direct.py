"""The STR score of a model that attends over the whole clip at once, read off that attention itself.

paper    STR-Match, Lee et al. 2025, equations 2-4, whose product of spatial and temporal maps stands for this
needs    attention over all tokens of the clip ("joint" sites)
gives    row statistics, as `kernels.str_rows` does
differs  all of it is ours: the paper does not define its score for such a model

With A[(i,p), (j,q)] the attention of token p of frame i to token q of frame j, in a softmax over all tokens and the
text,

    Omega_i[p, q] = sum over j in N(i) of  A[(i,p), (j,q)] + A[(j,q), (i,p)].

A is never held: only its rows' logarithms of the sum, and a few rows of blocks at a time, which are computed again in
the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..engine.call import Call

ROOM = 2**24  # numbers of a map that are held at once


def direct_rows(source: Call, target: Call, *, neighbours: int = 1, per_head: bool = False) -> Tensor:
    """Row statistics of the source's score a and the target's b.

    Args:
        source, target: calls of one joint layer, of one row each.
        neighbours: N(i) is the frames at distance 1..neighbours of frame i.

    Returns:
        [F N 3], [H F N 3] with `per_head`: sums over q of ab, aa and bb. Differentiable in the target; the source is a
        constant.
    """
    frames, size = source.grid[0], source.grid[1] * source.grid[2]
    with torch.no_grad():
        a = _Side(source)
    b = _Side(target)
    step = max(1, ROOM // (a.q.shape[0] * size))
    statistics = []
    for i in range(frames):
        near = [j for j in range(max(0, i - neighbours), min(frames, i + neighbours + 1)) if j != i]
        for first in range(0, size, step):
            rows = slice(first, min(first + step, size))

            def some(i=i, near=near, rows=rows) -> Tensor:
                with torch.no_grad():
                    one = a.score(i, near, rows, per_head)
                other = b.score(i, near, rows, per_head)
                return torch.stack([(one * other).sum(-1), (one * one).sum(-1), (other * other).sum(-1)], -1)

            statistics.append(_again(some))
    return torch.cat(statistics, -2).unflatten(-2, (frames, size))


class _Side:
    """Queries and keys of one call, and the logarithm of the sum of every row of its attention."""

    def __init__(self, call: Call):
        q, k = (x[0, 0] for x in (call.q, call.k))  # [H, M, D]
        q, k = (x.float() if x.dtype in (torch.float16, torch.bfloat16) else x for x in (q, k))
        hidden = 0 if call.bias is None else call.bias[0, 0, 0, 0].to(q)  # what hides a text's padding: [L]
        clip = call.grid[0] * call.grid[1] * call.grid[2]
        self.size, self.q, self.k, self.scale = clip // call.grid[0], q[:, -clip:], k[:, -clip:], call.scale
        step = max(1, ROOM // (k.shape[0] * k.shape[1]))

        def sums(some: Tensor) -> Tensor:
            return _again(lambda: (some @ k.transpose(-1, -2) * self.scale + hidden).logsumexp(-1))

        self.sums = torch.cat([sums(part) for part in self.q.split(step, 1)], 1)  # [H, F N]

    def score(self, i: int, near: list[int], rows: slice, per_head: bool) -> Tensor:
        """Some rows of Omega_i, [P N] or [H P N]."""
        q, k, sums = (self._frame(x, i)[:, rows] for x in (self.q, self.k, self.sums))
        total = 0
        for j in near:
            q_j, k_j, sums_j = (self._frame(x, j) for x in (self.q, self.k, self.sums))
            there = (q @ k_j.transpose(-1, -2) * self.scale - sums[..., None]).exp()
            back = (k @ q_j.transpose(-1, -2) * self.scale - sums_j[:, None]).exp()
            total = total + there + back
        return total if per_head else total.mean(0)

    def _frame(self, x: Tensor, i: int) -> Tensor:
        return x[:, i * self.size : (i + 1) * self.size]


def _again(make: Callable[[], Tensor]) -> Tensor:
    """What `make` gives, of which nothing is kept for the backward pass but what it is made of."""
    return checkpoint(make, use_reentrant=False) if torch.is_grad_enabled() else make()
