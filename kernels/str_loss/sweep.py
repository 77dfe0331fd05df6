"""What a sweep over the clip holds: head-mean maps of a few frames, and gradients in the making."""

from __future__ import annotations

import torch
from torch import Tensor

from ..attention_map.fused import mean_maps, normalisers
from ..attention_map.fused_backward import mean_maps_backward


class Ring:
    """One side's t, laid out for the kernels, and its rolling window of head-mean maps."""

    def __init__(self, q: Tensor, k: Tensor, t: Tensor, scale: float, slots: int):
        self.q, self.k, self.scale, self.slots = q.contiguous(), k.contiguous(), scale, slots
        self.t = t.permute(1, 2, 0).float().contiguous()  # [F F N]: pixels lie side by side
        self.norms = normalisers(self.q, self.k, scale)
        F, _, N, _ = q.shape
        self.maps = torch.empty(slots, N, N, dtype=torch.float32, device=q.device)
        self.frames, self.filled = F, 0

    def fill(self, end: int) -> None:
        """Make the maps of frames before `end`, over those that are `slots` frames older."""
        end = min(end, self.frames)
        if self.filled < end:
            mean_maps(self.q, self.k, self.norms, self.scale, self.maps, range(self.filled, end))
            self.filled = end


class Gradients:
    """Of the target's q, k and t, out of what is gathered for a few frames at a time."""

    def __init__(
        self, side: Ring, frames: int, tiles: tuple[int, int], neighbours: int, maps_wanted: bool, t_wanted: bool
    ):
        """
        Args:
            frames: how many at a time, at most.
            tiles: of a map, down and across.
        """
        self.side, self.neighbours, like = side, neighbours, {"dtype": torch.float32, "device": side.q.device}
        F, N = side.frames, side.maps.shape[-1]
        self.dq, self.dk = (torch.empty_like(side.q), torch.empty_like(side.k)) if maps_wanted else (None, None)
        self.dt = torch.zeros(F, F, N, **like) if t_wanted else None
        self.ds = torch.empty((frames, N, N) if maps_wanted else 1, **like)
        self.peaks = torch.empty((frames, *tiles) if maps_wanted else 1, **like)
        self.partial = torch.empty((frames, tiles[1], 2 * neighbours, N) if t_wanted else 1, **like)

    @property
    def room(self) -> tuple[Tensor, Tensor, Tensor]:
        """What kernels write into: dS, the largest entry of each of its tiles, and shares of the sums of dT."""
        return self.ds, self.peaks, self.partial

    def take(self, frames: range) -> None:
        """What was written is that of these frames."""
        side, count = self.side, len(frames)
        if self.dq is not None:
            largest = self.peaks[:count].amax((1, 2))
            mean_maps_backward(side.q, side.k, side.norms, self.ds, largest, side.scale, self.dq, self.dk, frames)
        if self.dt is not None:
            _store_weights(self.dt, self.partial[:count].sum(1), frames, self.neighbours)

    def whole(self, dtype: torch.dtype) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """(dq, dk, dt), once all frames were taken; dt in the weights' own dtype."""
        return self.dq, self.dk, self.dt.permute(2, 0, 1).to(dtype) if self.dt is not None else None


def _store_weights(dt: Tensor, sums: Tensor, frames: range, neighbours: int) -> None:
    """Into dt [F F N] at [i, i + e] for some frames i, from sums [S 2R N], where i + e is in the clip."""
    for slot, e in enumerate([*range(-neighbours, 0), *range(1, neighbours + 1)]):
        inside = range(max(frames.start, -e), min(frames.stop, len(dt) - e))
        if inside:
            there = sums[inside.start - frames.start : inside.stop - frames.start, slot]
            dt.diagonal(e, 0, 1)[:, inside.start + min(e, 0) : inside.stop + min(e, 0)] = there.mT
