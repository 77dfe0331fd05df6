from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .chunked import rows_chunked, rows_chunked_backward
from .reduce import reduce_rows


class Rows(torch.autograd.Function):
    """Row statistics that save q, k and t only: the backward makes every map again.

    `forward_rows` and `backward_rows` are one implementation's pair of functions, with the signatures of chunked.py.
    """

    @staticmethod
    def forward(ctx, forward_rows, backward_rows, neighbours: int, scale: float, *sides: Tensor) -> Tensor:
        ctx.backward_rows, ctx.neighbours, ctx.scale = backward_rows, neighbours, scale
        ctx.save_for_backward(*sides)
        return forward_rows(sides[:3], sides[3:], neighbours, scale)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        sides = ctx.saved_tensors
        *_, q_wanted, k_wanted, t_wanted = ctx.needs_input_grad
        dq, dk, dt = ctx.backward_rows(
            sides[:3], sides[3:], ctx.neighbours, ctx.scale, grad, q_wanted or k_wanted, t_wanted
        )
        return *(None,) * 7, dq if q_wanted else None, dk if k_wanted else None, dt


def loss_chunked(
    source: tuple, target: tuple, neighbours: int, scale: float, maps_wanted: bool, t_wanted: bool
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """What `fused_loss.loss_fused` gives, in two sweeps of torch: for where Triton cannot build that."""
    rows = rows_chunked(source, target, neighbours, scale)
    with torch.enable_grad():
        leaf = rows.detach().requires_grad_()
        (grad,) = torch.autograd.grad(reduce_rows(leaf), leaf)
    return rows, *rows_chunked_backward(source, target, neighbours, scale, grad, maps_wanted, t_wanted)


class Loss(torch.autograd.Function):
    """Minus the sum of the rows' cosines, and the rows. The gradient is made along with them and kept: it is no larger
    than q, k and t.

    `forward_loss` has the signature of `fused_loss.loss_fused`.
    """

    @staticmethod
    def forward(ctx, forward_loss, neighbours: int, scale: float, *sides: Tensor) -> tuple[Tensor, Tensor]:
        *_, q_wanted, k_wanted, t_wanted = ctx.needs_input_grad
        rows, *gradients = forward_loss(sides[:3], sides[3:], neighbours, scale, q_wanted or k_wanted, t_wanted)
        ctx.gradients = [x if wanted else None for x, wanted in zip(gradients, (q_wanted, k_wanted, t_wanted))]
        ctx.mark_non_differentiable(rows)
        return reduce_rows(rows), rows

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor, _):
        return *(None,) * 6, *(None if x is None else x * grad for x in ctx.gradients)
