"""A block that is evaluated again in the backward pass, so that nothing of its inside is kept.

torch's own checkpoints do not fit core's blocks. The non-reentrant one stores what it recomputes without looking at
versions, and blocks that add in place to their stream then give wrong gradients without a word; the reentrant one
refuses `autograd.grad`. Weights need no gradients here, so the whole of it is one function of the streams.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from types import CellType, FunctionType

import torch
from torch import Tensor
from torch.autograd.graph import allow_mutation_on_saved_tensors

Scope = Callable[[], AbstractContextManager]


def recomputed(run: Callable[..., tuple[Tensor, ...]], scope: Scope, *streams: Tensor) -> tuple[Tensor, ...]:
    """`run(*streams)`, whose inside is made anew in the backward pass.

    Args:
        run: what it closes over must not change until then: see `frozen`. It may change what it is given in place.
        scope: in which gradients pass it.
    """
    return _Recomputed.apply(run, scope, *streams)


def frozen(function: Callable) -> Callable:
    """A function whose closure is as it is now: core's `original_block` closes over the variable of a loop, so that
    later it would run the last block."""
    if not isinstance(function, FunctionType):
        return function
    cells = tuple(CellType(cell.cell_contents) for cell in function.__closure__ or ())
    made = FunctionType(function.__code__, function.__globals__, function.__name__, function.__defaults__, cells)
    made.__kwdefaults__ = function.__kwdefaults__
    return made


class _Recomputed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, run, scope: Scope, *streams: Tensor) -> tuple[Tensor, ...]:
        ctx.run, ctx.scope = run, scope
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*streams)
        return run(*(stream.clone() for stream in streams))

    @staticmethod
    def backward(ctx, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        needed = ctx.needs_input_grad[2:]
        with ctx.scope(), torch.enable_grad(), allow_mutation_on_saved_tensors():
            given = [x.detach().requires_grad_(need) for x, need in zip(ctx.saved_tensors, needed)]
            made = ctx.run(*(x.clone() for x in given))
            through = [(x, g) for x, g in zip(made, gradients) if g is not None and x.requires_grad]
            wanted = [x for x in given if x.requires_grad]
            found = iter(
                torch.autograd.grad([x for x, _ in through], wanted, [g for _, g in through], allow_unused=True)
            )
        return None, None, *(next(found) if need else None for need in needed)
