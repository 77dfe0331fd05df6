"""The reference with one rolling window of head-mean maps, and its gradient by recomputation.

Given T the score is linear in the maps, so with a_i(q) = sum of T_q[i,j] and b_i(q) = sum of T_q[j,i], j in N(i):

    Omega_i = S_i D(a_i) + S_i' D(b_i) + sum over j of  D(T[i,j]) S_j + D(T[j,i]) S_j'      (D: diagonal, ': transpose)

and G_m = dL/dOmega_m reaches the maps of m and of N(m), and the weights T[m,.] and T[.,m], and nothing else. So one
sweep over m, a window of 2 neighbours + 1 maps a side and as many gradients, and tiles of rows, are all it takes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..attention_map.chunked import attention_map_chunked, mean_map_backward_chunked
from ..tiles import computing_dtype, row_tiles, tile_budget
from .reference import near


class Side:
    """One side's q, k, t and its rolling window of head-mean maps."""

    def __init__(self, q: Tensor, k: Tensor, t: Tensor, neighbours: int, scale: float):
        self.q, self.k, self.scale, self.neighbours = q, k, scale, neighbours
        self.t = t.to(computing_dtype(q.dtype))
        self.maps: dict[int, Tensor] = {}

    def near(self, i: int) -> list[int]:
        return near(i, len(self.q), self.neighbours)

    def advance(self, i: int) -> None:
        """Hold the maps that frame i needs and no other."""
        wanted = [i, *self.near(i)]
        self.maps = {j: s for j, s in self.maps.items() if j in wanted}
        for j in wanted:
            if j not in self.maps:
                self.maps[j] = attention_map_chunked(self.q[j : j + 1], self.k[j : j + 1], self.scale)[0]

    def score(self, i: int, rows: slice | Tensor) -> Tensor:
        """Omega_i[rows], [P N]."""
        t, s = self.t, self.maps[i]
        js = self.near(i)
        out = s[rows] * t[:, i, js].sum(1)
        out.addcmul_(s[:, rows].T, t[:, js, i].sum(1)[None])
        for j in js:
            out.addcmul_(self.maps[j][rows], t[rows, i, j, None])
            out.addcmul_(self.maps[j][:, rows].T, t[rows, j, i, None])
        return out


def rows_chunked(source: tuple, target: tuple, neighbours: int, scale: float) -> Tensor:
    """Row statistics [F N 3], as the reference defines them."""
    a, b = (Side(*side, neighbours, scale) for side in (source, target))
    F, _, N, _ = b.q.shape
    out = torch.empty(F, N, 3, dtype=b.t.dtype, device=b.q.device)
    for i in range(F):
        a.advance(i)
        b.advance(i)
        for rows in row_tiles(N, N, tile_budget(b.q.device)):
            x, y = a.score(i, rows), b.score(i, rows)
            for column, (u, v) in enumerate([(x, y), (x, x), (y, y)]):
                out[i, rows, column] = torch.linalg.vecdot(u, v)
    return out


def rows_chunked_backward(
    source: tuple, target: tuple, neighbours: int, scale: float, grad: Tensor, maps_wanted: bool, t_wanted: bool
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of the target's q, k (if `maps_wanted`) and t (if `t_wanted`) from `grad` [F N 3] of the rows."""
    a, b = (Side(*side, neighbours, scale) for side in (source, target))
    F, _, N, _ = b.q.shape
    dq, dk = (torch.empty_like(b.q), torch.empty_like(b.k)) if maps_wanted else (None, None)
    dt = torch.zeros_like(b.t) if t_wanted else None
    ds: dict[int, Tensor] = {}
    for m in range(F):
        a.advance(m)
        b.advance(m)
        if maps_wanted:
            for j in (m, *b.near(m)):
                if j not in ds:
                    ds[j] = torch.zeros_like(b.maps[j])
        for rows in row_tiles(N, N, tile_budget(b.q.device)):
            # [B N] of G_m: d(ab)/db = a and d(bb)/db = 2 b
            g = a.score(m, rows).mul_(grad[m, rows, 0, None])
            g.addcmul_(b.score(m, rows), grad[m, rows, 2, None], value=2)
            if maps_wanted:
                _scatter_to_maps(ds, b, m, rows, g)
            if t_wanted:
                _scatter_to_weights(dt, b, m, rows, g)
        # frame m + neighbours + 1 will not reach back to this map
        for done in [i for i in ds if i <= m - neighbours or m == F - 1]:
            dq[done], dk[done] = mean_map_backward_chunked(b.q[done], b.k[done], ds.pop(done), scale)
    return dq, dk, None if dt is None else dt.to(target[2].dtype)


def _scatter_to_maps(ds: dict[int, Tensor], b: Side, m: int, rows: slice, g: Tensor) -> None:
    js, t = b.near(m), b.t
    ds[m][rows].addcmul_(g, t[:, m, js].sum(1))
    ds[m][:, rows].addcmul_(g.T, t[:, js, m].sum(1)[:, None])
    for j in js:
        ds[j][rows].addcmul_(g, t[rows, m, j, None])
        ds[j][:, rows].addcmul_(g.T, t[rows, j, m])


def _scatter_to_weights(dt: Tensor, b: Side, m: int, rows: slice, g: Tensor) -> None:
    js, s = b.near(m), b.maps
    dt[:, m, js] += (g * s[m][rows]).sum(0)[:, None]
    dt[:, js, m] += (g * s[m][:, rows].T).sum(0)[:, None]
    for j in js:
        dt[rows, m, j] += torch.linalg.vecdot(g, s[j][rows])
        dt[rows, j, m] += torch.linalg.vecdot(g, s[j][:, rows].T)
