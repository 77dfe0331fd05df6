"""Controls on a diffusers network, for the length of a `with`.

At each attention site that a control may rewrite, the layer's processor is replaced by one that computes q, k and v,
lets the controls act and goes on as before; block outputs pass through forward hooks. Leaving the `with`, also by an
exception or a cancel, puts every processor back and removes every hook. Layers are not touched where no control acts,
so a run without controls is the unmodified network, bit for bit.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ...engine.call import Call, Evaluation, Features, beside, softmax_attention
from ...engine.plan import Control, EditPlan, attend_with
from ...engine.words import SOURCE, Block, Model, Site

LAYER = re.compile(
    r"(down_blocks\.\d+|mid_block|up_blocks\.\d+)\.\w+\.\d+|transformer_blocks\.\d+"
)  # of a UNet or a transformer: what is evaluated again at once


@contextmanager
def tapped(network: nn.Module, model: Model, evaluation: Evaluation, plan: EditPlan) -> Iterator[None]:
    """A network, whose facts `model` states, with the plan's controls at its attention sites and blocks."""
    recompute = evaluation.recompute and torch.is_grad_enabled()
    with _attached(network, model, evaluation, plan), ExitStack() as stack:
        if recompute:
            stack.enter_context(_recomputing(network, model, evaluation, plan))
        yield


@contextmanager
def _attached(
    network: nn.Module, model: Model, evaluation: Evaluation, plan: EditPlan, within: str = ""
) -> Iterator[None]:
    """The plan's controls at all sites and blocks, or at those inside one module of the network."""
    rewriting, reading = plan.acting_at("attention"), plan.acting_at("feature")
    with ExitStack() as stack:
        for site in model.sites if rewriting else ():
            if site.layer.startswith(within):
                layer = network.get_submodule(site.layer)
                stack.callback(layer.set_processor, layer.processor)
                grid = model.grid(site, evaluation.latents.shape)
                tap = TappedJoint if site.kind == "joint" else TappedAttention
                layer.set_processor(tap(site, grid, evaluation, rewriting))
        for block in model.blocks if reading else ():
            if block.name.startswith(within):
                hook = _feature_hook(block, evaluation, reading)
                stack.callback(network.get_submodule(block.name).register_forward_hook(hook).remove)
        yield


@contextmanager
def _recomputing(network: nn.Module, model: Model, evaluation: Evaluation, plan: EditPlan) -> Iterator[None]:
    """Keeps nothing of what happens inside a layer of the UNet, which is evaluated again in the backward pass.

    The backward pass comes when the controls have left the network, so each layer then takes its own along.
    """
    left = []  # not empty once the forward pass is over

    def again(name: str, forward):
        def run(*args, **kwargs):
            if not left:
                return forward(*args, **kwargs)
            with _attached(network, model, evaluation, plan, f"{name}."):
                return forward(*args, **kwargs)

        return lambda *args, **kwargs: checkpoint(run, *args, use_reentrant=False, **kwargs)

    with ExitStack() as stack:
        for name, module in network.named_modules():
            if LAYER.fullmatch(name):
                stack.callback(delattr, module, "forward")  # what hides the class's own
                module.forward = again(name, module.forward)
        stack.callback(left.append, True)
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

        placed = getattr(layer, "placed", _as_it_is)  # by frame, in layers that know their order

        def project(tokens: Tensor) -> tuple[Tensor, Tensor]:
            flat = rearrange(tokens, "r g m c -> (r g) m c")
            k, v = (
                rearrange(to(flat), "(r g) m (h d) -> r g h m d", r=len(tokens), h=layer.heads)
                for to in (layer.to_k, layer.to_v)
            )
            return placed(k), v

        tokens = rearrange(hidden_states, "(r g) m c -> r g m c", r=rows)
        call = Call(
            self.site,
            self.evaluation.rows,
            placed(heads(layer.to_q(hidden_states))),
            placed(heads(layer.to_k(context))),
            heads(layer.to_v(context)),
            self.evaluation.frames,
            self.grid,
            layer.scale,
            tokens,
            tokens,
            project,
            self.evaluation.run,
            layer.logit_bias(tokens.shape[2])[None, None] if hasattr(layer, "logit_bias") else None,
        )
        x = rearrange(self.attend(beside(call)), "r g h m d -> (r g) m (h d)").to(hidden_states.dtype)
        return layer.to_out[1](layer.to_out[0](x))


def _as_it_is(x: Tensor) -> Tensor:
    return x


class TappedJoint:
    """The same for a layer that attends over the text and the whole clip at once, text first: one group of tokens.

    Queries and keys are normalised by head; those of the clip are then turned by their place, where the model does so.
    """

    def __init__(self, site: Site, grid: tuple[int, int, int], evaluation: Evaluation, controls: Sequence[Control]):
        self.site, self.grid, self.evaluation = site, grid, evaluation
        self.attend = attend_with(controls, softmax_attention)

    def __call__(
        self,
        layer: nn.Module,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        if attention_mask is not None:
            raise ValueError(f"{self.site.layer} was given an attention mask, which controls do not support")
        text = encoder_hidden_states.shape[1]
        tokens = torch.cat([encoder_hidden_states, hidden_states], 1)[:, None]

        def heads(x: Tensor) -> Tensor:
            return rearrange(x, "r g m (h d) -> r g h m d", h=layer.heads)

        def placed(x: Tensor, norm: nn.Module | None) -> Tensor:
            x = heads(x) if norm is None else norm(heads(x))
            return x if image_rotary_emb is None else torch.cat([x[..., :text, :], _turned(x[..., text:, :])], -2)

        def _turned(x: Tensor) -> Tensor:
            from diffusers.models.embeddings import apply_rotary_emb

            return apply_rotary_emb(x.squeeze(1), image_rotary_emb)[:, None]

        def project(x: Tensor) -> tuple[Tensor, Tensor]:
            return placed(layer.to_k(x), layer.norm_k), heads(layer.to_v(x))

        call = Call(
            self.site,
            self.evaluation.rows,
            placed(layer.to_q(tokens), layer.norm_q),
            *project(tokens),
            self.evaluation.frames,
            self.grid,
            layer.scale,
            tokens,
            tokens,
            project,
            self.evaluation.run,
        )
        x = rearrange(self.attend(beside(call)), "r 1 h m d -> r m (h d)").to(hidden_states.dtype)
        x = layer.to_out[1](layer.to_out[0](x))
        return x[:, text:], x[:, :text]


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
