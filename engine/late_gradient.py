"""The gradient of a loss over many layers, of which each layer's share is made when the backward pass comes to it.

torch goes back first through what was computed last: all of the loss, then the network. The gradients of all layers'
queries and keys, as large as these, would so wait beside the network's graph while that is largest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial

import torch
from torch import Tensor

Part = tuple[Callable[..., Tensor], Sequence[Tensor]]


def late_gradient(
    parts: Iterable[Part], reduce: Callable[[list[Tensor]], Tensor], z: Tensor, scale: float = 1.0
) -> tuple[Tensor, Tensor]:
    """The loss, without a graph, and its gradient with respect to z.

    Args:
        parts: of each layer a function, and the tensors of z's graph that it is to be given. What it gives is kept, so
            it should be small.
        reduce: from what the functions gave to the loss, a scalar.
        scale: what the loss is multiplied by on its way back, and the gradient divided by at the end: tiny gradients
            vanish in half precision.
    """
    shares: list[_Share] = []
    seen: list[Tensor] = []
    for make, tensors in parts:
        given = [x.detach().requires_grad_() for x in tensors]
        shares.append(_Share(make(*given), given))
        for index, x in enumerate(tensors):
            x.register_hook(partial(shares[-1].added, index))
        seen += tensors
    results = [share.result.detach().requires_grad_() for share in shares]
    loss = reduce(results)
    for share, gradient in zip(shares, torch.autograd.grad(loss * scale, results)):
        share.gradient = gradient
    nothing = [x.new_zeros(()).expand_as(x) for x in seen]  # takes no memory
    (gradient,) = torch.autograd.grad(seen, z, nothing)
    return loss.detach(), gradient / scale


class _Share:
    """What one layer gave, and on the way back what its tensors are given."""

    def __init__(self, result: Tensor, given: list[Tensor]):
        self.result, self.given, self.gradient = result, given, None
        self.found: list[Tensor | None] | None = None

    def added(self, index: int, gradient: Tensor) -> Tensor:
        """The network's own gradient of a tensor, and this layer's with it."""
        if self.found is None:
            self.found = list(torch.autograd.grad(self.result, self.given, self.gradient, allow_unused=True))
            self.result = self.given = self.gradient = None
        own, self.found[index] = self.found[index], None
        return gradient if own is None else gradient + own
