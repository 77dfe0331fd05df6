from __future__ import annotations

from collections.abc import Sequence

import torch


class Pairs(Sequence):
    """Pairs of sets, brought to a device once: who asks at every layer would wait for it at every layer."""

    def __init__(self, pairs: Sequence[tuple[int, int]], device: torch.device):
        self.pairs = pairs
        self.tensor = torch.tensor(pairs, dtype=torch.int32, device=device).view(-1, 2)  # [P 2]

    def __getitem__(self, at: int) -> tuple[int, int]:
        return self.pairs[at]

    def __len__(self) -> int:
        return len(self.pairs)
