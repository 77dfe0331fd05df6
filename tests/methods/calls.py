"""Calls of an attention layer made by hand, for controls that rewrite them."""

import torch
from torch import Tensor

from weft.engine.call import Evaluation
from weft.engine.words import Site

SITE = Site("layer", "spatial", "block", 0, 0)
SCALE = 0.3


def evaluation(rows, frames, *, step=0, steps=10, prompts=None) -> Evaluation:
    latents = torch.zeros(len(rows), frames, 4, 2, 2)
    return Evaluation(latents, 1, prompts or (None,) * len(rows), rows, step, steps, frames=tuple(range(frames)))


def call_of(q: Tensor, rows=("source",), *, site=SITE, grid=None, tokens=None, of=None) -> AttentionCall:
    """A call for q [R, F, H, n, D]; its layer projects tokens by two fixed random matrices."""
    r, frames, heads, n, size = q.shape
    tokens = torch.randn(r, frames, n, 7, dtype=q.dtype) if tokens is None else tokens
    matrices = torch.randn(2, tokens.shape[-1], heads * size, generator=torch.Generator().manual_seed(5)).to(q.dtype)

    def project(x):
        return tuple((x @ m).unflatten(-1, (heads, size)).transpose(2, 3) for m in matrices)

    of = of or evaluation(rows, frames)
    return AttentionCall(site, of, grid or (frames, 1, n), SCALE, tokens, project)


def attend(q, k, v):
    return (q @ k.mT * SCALE).softmax(-1) @ v


def tensors(*shape, count=3):
    return torch.randn(count, *shape, dtype=torch.float64).unbind()
