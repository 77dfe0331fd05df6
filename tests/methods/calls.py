"""Calls of an attention layer made by hand, for controls that rewrite them."""

from dataclasses import replace

import torch
from torch import Tensor

from weft.engine.call import Call, Evaluation, Run, beside
from weft.engine.words import SOURCE, Row, Site

SITE = Site("layer", "spatial", "block", 0, 0)
SCALE = 0.3


def evaluation(rows: tuple[Row, ...], frames: int, *, step=0, steps=10, prompts=None) -> Evaluation:
    latents = torch.zeros(len(rows), frames, 4, 2, 2)
    return Evaluation(latents, 1, prompts or (None,) * len(rows), rows, run=Run(step, steps))


def call_of(
    q: Tensor, k: Tensor, v: Tensor, rows=(SOURCE,), *, site=SITE, grid=None, tokens=None, step=0, steps=10
) -> Call:
    """A call for q [R, F, H, n, D], k and v [R, F, H, m, D], with its source beside it if that is one of the rows.

    Its layer projects tokens by two fixed random matrices.
    """
    r, frames, heads, n, size = q.shape
    tokens = torch.randn(r, frames, n, 7, dtype=q.dtype) if tokens is None else tokens
    matrices = torch.randn(2, tokens.shape[-1], heads * size, generator=torch.Generator().manual_seed(5)).to(q.dtype)

    def project(x):
        return tuple((x @ m).unflatten(-1, (heads, size)).transpose(2, 3) for m in matrices)

    grid, run = grid or (frames, 1, n), Run(step, steps)
    return beside(Call(site, rows, q, k, v, tuple(range(frames)), grid, SCALE, tokens, tokens, project, run))


def shared(call: Call, owner, value) -> Call:
    """The call as it is where a control left `value` for itself."""
    return replace(call, run=replace(call.run, shared={owner: value}))


def attended(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention with its map in full."""
    return (q @ k.mT * SCALE).softmax(-1) @ v


def attend(call: Call) -> Tensor:
    """What a call gives where nothing more acts, group by group and with maps in full."""
    out, groups = [], call.q.shape[1]
    for group in range(groups):
        own = (group,) if call.k.shape[1] == groups else (0,)
        seen = own if call.seen is None else call.seen[group]
        k, v = (torch.cat([x[:, f] for f in seen], 2) for x in (call.k, call.v))
        logits = call.q[:, group] @ k.mT * call.scale
        if call.bias is not None:
            logits = logits + call.bias[:, group if call.bias.shape[1] > 1 else 0]
        out.append(logits.softmax(-1) @ v)
    return torch.stack(out, 1)


def tensors(*shape, count=3):
    return torch.randn(count, *shape, dtype=torch.float64).unbind()
