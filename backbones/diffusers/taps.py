"""Controls on a diffusers network, for the length of a `with`.

At each attention site that a control may rewrite, the layer's processor is replaced by one that computes q, k and v,
lets the controls act and goes on as before; block outputs pass through forward hooks. Leaving the `with`, also by an
exception or a cancel, puts every processor back and removes every hook. Layers are not touched where no control acts,
so a run without controls is the unmodified network, bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from einops import rearrange
from torch import Tensor, nn

from ...engine.call import Call, Evaluation, Features, beside, softmax_attention
from ...engine.plan import Control, EditPlan, attend_with
from ...engine.words import SOURCE, Block, Model, Site


@contextmanager
def tapped(network: nn.Module, model: Model, evaluation: Evaluation, plan: EditPlan) -> Iterator[None]:
    """A network, whose facts `model` states, with the plan's controls at its attention sites and blocks."""
    rewriting, reading = plan.acting_at("attention"), plan.acting_at("feature")
    with ExitStack() as stack:
        for site in model.sites if rewriting else ():
            layer = network.get_submodule(site.layer)
            stack.callback(layer.set_processor, layer.processor)
            layer.set_processor(
                TappedAttention(site, model.grid(site, evaluation.latents.shape), evaluation, rewriting)
            )
        for block in model.blocks if reading else ():
            hook = _feature_hook(block, evaluation, reading)
            stack.callback(network.get_submodule(block.name).register_forward_hook(hook).remove)
        yield


class TappedAttention:
    """A diffusers attention processor: the layer's own projections around attention that controls may rewrite."""

    def __init__(self, site: Site, grid: tuple[int, int, int], evaluation: Evaluation, controls: Sequence[Control]):
        self.site, self.grid, self.evaluation = site, grid, evaluation
        self.attend = attend_with(controls, softmax_attention)

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

        tokens = rearrange(hidden_states, "(r g) m c -> r g m c", r=rows)
        call = Call(
            self.site,
            self.evaluation.rows,
            heads(layer.to_q(hidden_states)),
            heads(layer.to_k(context)),
            heads(layer.to_v(context)),
            self.evaluation.frames,
            self.grid,
            layer.scale,
            tokens,
            tokens,
            project,
            self.evaluation.run,
        )
        x = rearrange(self.attend(beside(call)), "r g h m d -> (r g) m (h d)").to(hidden_states.dtype)
        return layer.to_out[1](layer.to_out[0](x))


def _feature_hook(block: Block, evaluation: Evaluation, controls: Sequence[Control]):
    rows = evaluation.rows

    def hook(module: nn.Module, inputs, output):
        hidden, *rest = output if isinstance(output, tuple) else (output,)
        x = rearrange(hidden, "(r f) c h w -> r f c h w", r=len(rows))
        source = x[rows.index(SOURCE)][None] if SOURCE in rows else None
        for control in reversed(controls):
            x = control.feature(Features(block, x, rows, evaluation.run, source))
        x = rearrange(x, "r f c h w -> (r f) c h w")
        return (x, *rest) if isinstance(output, tuple) else x

    return hook
