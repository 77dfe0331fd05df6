"""Controls on a diffusers network, for the length of a `with`.

At each attention site that a control may rewrite, the layer's processor is replaced by one that computes q, k and v,
lets the controls act and goes on as before; block outputs pass through forward hooks. Leaving the `with`, also by an
exception or a cancel, puts every processor back and removes every hook. Layers are not touched where no control acts,
so a run without controls is the unmodified network, bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..engine.attention import attend_with
from ..engine.nouns import AttentionCall, Block, Control, Evaluation, Site


@contextmanager
def tapped(
    network: nn.Module,
    sites: Sequence[Site],
    blocks: Sequence[Block],
    grids: Mapping[int, tuple[int, int, int]],
    evaluation: Evaluation,
    controls: Sequence[Control],
) -> Iterator[None]:
    """The network with `controls` at its attention sites and blocks. `grids` gives (F, h, w) of each level."""
    rewriting = [c for c in controls if c.acts_at("attention")]
    reading = [c for c in controls if c.acts_at("feature")]
    with ExitStack() as stack:
        if rewriting:
            for site in sites:
                layer = network.get_submodule(site.layer)
                stack.callback(layer.set_processor, layer.processor)
                layer.set_processor(TappedAttention(site, grids[site.level], evaluation, rewriting))
        if reading:
            for block in blocks:
                hook = _feature_hook(block, evaluation, reading)
                stack.callback(network.get_submodule(block.name).register_forward_hook(hook).remove)
        yield


class TappedAttention:
    """A diffusers attention processor: the layer's own projections around attention that controls may rewrite."""

    def __init__(self, site: Site, grid: tuple[int, int, int], evaluation: Evaluation, controls: Sequence[Control]):
        self.site, self.grid, self.evaluation, self.controls = site, grid, evaluation, controls

    def __call__(
        self,
        layer: nn.Module,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **_,
    ) -> Tensor:
        if attention_mask is not None:
            raise ValueError(f"{self.site.layer} was given an attention mask, which controls do not support")
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        rows = len(self.evaluation.rows)

        def heads(x: Tensor) -> Tensor:
            return rearrange(x, "(r g) m (h d) -> r g h m d", r=rows, h=layer.heads)

        def project(tokens: Tensor) -> tuple[Tensor, Tensor]:
            flat = rearrange(tokens, "r g m c -> (r g) m c")
            return tuple(
                rearrange(to(flat), "(r g) m (h d) -> r g h m d", r=len(tokens), h=layer.heads)
                for to in (layer.to_k, layer.to_v)
            )

        q, k, v = heads(layer.to_q(hidden_states)), heads(layer.to_k(context)), heads(layer.to_v(context))
        tokens = rearrange(hidden_states, "(r g) m c -> r g m c", r=rows)
        call = AttentionCall(self.site, self.evaluation, self.grid, layer.scale, tokens, project)

        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            flat = (x.flatten(0, 1) for x in (q, k, v))  # the kernels that hold no logits take four dimensions
            return F.scaled_dot_product_attention(*flat, scale=layer.scale).unflatten(0, q.shape[:2])

        x = attend_with(self.controls, call, attend)(q, k, v)
        x = rearrange(x, "r g h m d -> (r g) m (h d)").to(hidden_states.dtype)
        return layer.to_out[1](layer.to_out[0](x))


def _feature_hook(block: Block, evaluation: Evaluation, controls: Sequence[Control]):
    rows = len(evaluation.rows)

    def hook(module: nn.Module, inputs, output):
        hidden, *rest = output if isinstance(output, tuple) else (output,)
        x = rearrange(hidden, "(r f) c h w -> r f c h w", r=rows)
        for control in reversed(controls):
            x = control.feature(block, x, evaluation)
        x = rearrange(x, "r f c h w -> (r f) c h w")
        return (x, *rest) if isinstance(output, tuple) else x

    return hook
