"""The noun that says what is where in the other frames of a clip."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Correspondence:
    """For every place of every frame, its K best matches in the next and in the previous frame.

    Places are row-major in the grid; -1 is no match. Matches further away in time follow from these by chaining.
    """

    forward: Tensor  # [F-1, N, K] int32: row i, where in frame i + 1 the places of frame i are, best first
    backward: Tensor  # [F-1, N, K] int32: row i, where in frame i the places of frame i + 1 are
    grid: tuple[int, int]  # (h, w), N = h * w
    level: int  # resolution of the grid, as in `Site`
    window: int  # side of the square that was searched, in places
    model: str  # fingerprint of the model whose features were compared
    alike: tuple[Tensor, Tensor] | None = None  # float16 beside forward and backward: cosine of each match; to be shown

    def __post_init__(self):
        want = self.grid[0] * self.grid[1]
        for table in (self.forward, self.backward):
            if table.dtype != torch.int32 or table.ndim != 3 or table.shape[1] != want or not table.numel():
                raise ValueError(
                    f"a correspondence on a grid of {self.grid[0]}x{self.grid[1]} wants int32 tables [F-1, {want}, K], "
                    f"got {table.dtype} {list(table.shape)}"
                )
        if self.forward.shape != self.backward.shape:
            raise ValueError(f"tables of one clip: got {list(self.forward.shape)} and {list(self.backward.shape)}")

    @property
    def frames(self) -> int:
        return len(self.forward) + 1

    @property
    def top_k(self) -> int:
        return self.forward.shape[2]

    def to(self, device: torch.device) -> Correspondence:
        """The same with its tables there."""
        return replace(self, forward=self.forward.to(device), backward=self.backward.to(device))

    def require(self, frames: int, grid: tuple[int, int]) -> None:
        """Refuses a clip that this is not about.

        Raises:
            ValueError: another number of frames, or another grid at this level.
        """
        if (frames, tuple(grid)) != (self.frames, self.grid):
            raise ValueError(
                f"the correspondence is for {self.frames} frames on a grid of {self.grid[0]}x{self.grid[1]}, and the "
                f"clip has {frames} frames on {grid[0]}x{grid[1]}: connect one made from the latents of this clip"
            )

    def matches(self, frame: int, places: Tensor | None = None) -> Tensor:
        """Where some places of one frame are in every frame (COVE, equations 8 and 9).

        From frame to frame it is the best match that is followed, in both directions of time; its K best matches in
        the next frame are the matches there.

        Args:
            places: [M] in the frame's grid; all of it by default.

        Returns:
            [F, M, K] int32 places, best first; -1 is no match. In the frame itself: the place, and no other.
        """
        if not 0 <= frame < self.frames:
            raise ValueError(f"want a frame from 0 to {self.frames - 1}, got {frame}")
        if places is None:
            places = torch.arange(self.grid[0] * self.grid[1], device=self.forward.device)
        places = places.to(self.forward.device, torch.long)
        found = torch.full((self.frames, len(places), self.top_k), -1, dtype=torch.int32, device=self.forward.device)
        found[frame, :, 0] = places.int()
        at = places
        for other in range(frame + 1, self.frames):
            found[other] = _followed(self.forward[other - 1], at)
            at = found[other, :, 0].long()
        at = places
        for other in range(frame - 1, -1, -1):
            found[other] = _followed(self.backward[other], at)
            at = found[other, :, 0].long()
        return found


def _followed(table: Tensor, at: Tensor) -> Tensor:
    """[M, K] the matches of places [M] in a table [N, K]; a place that was lost has none."""
    return table[at.clamp(min=0)].masked_fill((at < 0)[:, None], -1)
