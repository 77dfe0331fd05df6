from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


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
