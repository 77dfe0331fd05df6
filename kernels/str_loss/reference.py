from __future__ import annotations

import torch
from torch import Tensor

from ..attention_map.reference import attention_map_reference


def near(i: int, frames: int, neighbours: int) -> list[int]:
    """N(i): the frames within `neighbours` of frame i, cut at both ends of the clip, without i."""
    return [j for j in range(max(0, i - neighbours), min(frames, i + neighbours + 1)) if j != i]


def score_of_maps(s: Tensor, t: Tensor, neighbours: int) -> Tensor:
    """The STR score of every frame, [F N N]: equation 4 of STR-Match (Lee et al. 2025), term by term.

    Omega(i,p,q) = sum over j in N(i) of  T_p[i,j] S_j[p,q] + S_i[p,q] T_q[i,j] + T_q[j,i] S_i[q,p] + S_j[q,p] T_p[j,i]
    with S_i = s[i] the spatial map of frame i, from [F N N], and T_p = t[p] the temporal map of pixel p, from [N F F].
    """
    frames = len(s)
    score = []
    for i in range(frames):
        omega = torch.zeros_like(s[i])
        for j in near(i, frames, neighbours):
            there, back = t[:, i, j], t[:, j, i]
            omega = omega + there[:, None] * s[j] + s[i] * there + back * s[i].T + s[j].T * back[:, None]
        score.append(omega)
    return torch.stack(score)


def score_reference(q: Tensor, k: Tensor, t: Tensor, neighbours: int, scale: float) -> Tensor:
    """The same from q, k [F H N D], on head-mean maps."""
    s = attention_map_reference(q, k, scale)
    return score_of_maps(s, t.to(s.dtype), neighbours)


def rows_reference(source: tuple, target: tuple, neighbours: int, scale: float) -> Tensor:
    """Row statistics [F N 3] of a = source score (a constant) and b = target score: sums over q of ab, aa and bb."""
    a = score_reference(*source, neighbours, scale).detach()
    b = score_reference(*target, neighbours, scale)
    return torch.stack([(a * b).sum(-1), (a * a).sum(-1), (b * b).sum(-1)], -1)
