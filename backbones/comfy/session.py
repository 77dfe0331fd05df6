"""The engine's loops inside core's own sampling run: a CFGGuider, and a Sampler whose body is ours.

Core loads the model, encodes every conditioning for this clip, applies LoRAs, hooks and ControlNets, and cleans up;
the loop is the engine's. Options go into core's copy of the model options: nothing of ours is on the MODEL, ever.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import comfy.model_management as management
import comfy.samplers
import torch
from comfy.patcher_extension import WrappersMP, add_wrapper_with_key, copy_nested_dicts
from torch import Tensor, nn

from ...engine.autograd import ordinary

T = TypeVar("T")
OURS = "weft"  # key of our wrappers among those of other packs
Conditioning = list[dict[str, Any]]  # as core encodes it for one clip


class Inside:
    """What there is inside a sampling run: the loaded network, encoded conditionings, options."""

    def __init__(self, model: nn.Module, encoded: Mapping[str, Conditioning], options: dict):
        self.model, self.options = model, options
        # They were made in inference mode, and a gradient may have to pass them.
        self.encoded = {name: [_ordinary_entry(entry) for entry in some] for name, some in encoded.items()}

    def clean(
        self,
        conditionings: Sequence[Conditioning],
        x: Tensor,
        sigma: float,
        options: Mapping[str, Any],
        turn: Callable[[list[int]], None] = lambda numbers: None,
    ) -> list[Tensor]:
        """x0 under each conditioning, for core's latents x at one sigma.

        Args:
            options: core's transformer options.
            turn: told, before each evaluation of the network, which of the conditionings are in its batch.
        """

        def told(executor, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options={}, **rest):  # noqa: B006
            turn(list(transformer_options["cond_or_uncond"]))
            return executor(x, t, c_concat, c_crossattn, control, transformer_options, **rest)

        own = {**options, "wrappers": copy_nested_dicts(options.get("wrappers", {}))}
        add_wrapper_with_key(WrappersMP.APPLY_MODEL, OURS, told, own)
        levels = torch.full((len(x),), sigma, device=x.device)  # as in sample_sigmas, which core compares it with
        model_options = {**self.options, "transformer_options": own}
        return comfy.samplers.calc_cond_batch(self.model, list(conditionings), x, levels, model_options)


def run_inside(
    patcher,
    conditionings: Mapping[str, list],
    latent: Tensor,
    sigmas: Tensor,
    body: Callable[[Inside], T],
    reserve: int,
) -> T:
    """`body`, in a sampling run of core's.

    Args:
        conditionings: in core's form, by any name.
        latent: of the clip, as core's wires carry it; only its shape and what is conditioned on it matter.
        sigmas: [S+1] falling to 0, of the run.
        reserve: bytes that `body` will want beside the weights.
    """
    guider = comfy.samplers.CFGGuider(patcher.clone())
    guider.model_options = copy_nested_dicts(guider.model_options)
    add_wrapper_with_key(
        WrappersMP.PREPARE_SAMPLING, OURS, _with_room(reserve), guider.model_options, is_model_options=True
    )
    guider.inner_set_conds(dict(conditionings))
    sampler = _Body(body)
    with torch.inference_mode():  # as core runs every node: its weights and caches are inference tensors
        guider.sample(torch.zeros_like(latent), latent, sampler, sigmas, disable_pbar=True, seed=0)
    return sampler.result


class _Body(comfy.samplers.Sampler):
    """Runs a function where core would run its sampler."""

    def __init__(self, body: Callable[[Inside], Any]):
        self.body, self.result = body, None

    def sample(self, model_wrap, sigmas, extra_args, callback, noise, *args, **kwargs):
        with torch.inference_mode(False), torch.no_grad():
            self.result = self.body(Inside(model_wrap.inner_model, model_wrap.conds, extra_args["model_options"]))
        return noise


def _with_room(reserve: int):
    """Lets core reckon with at least so much memory: as many more frames as take it."""

    def prepare(executor, model, noise_shape, conds, *args, **kwargs):
        need = max(1, model.model.memory_required(list(noise_shape)))
        times = max(1, -(-reserve // int(need)))
        return executor(model, [noise_shape[0] * times, *noise_shape[1:]], conds, *args, **kwargs)

    return prepare


def _ordinary_entry(entry: dict[str, Any]) -> dict[str, Any]:
    made = {name: value._copy_with(_ordinary(value.cond)) for name, value in entry.get("model_conds", {}).items()}
    return {**entry, "model_conds": made}


def _ordinary(value: Any) -> Any:
    if isinstance(value, Tensor):
        return ordinary(value)
    return [_ordinary(v) for v in value] if isinstance(value, list) else value


def free_memory(device: torch.device) -> int | None:
    return None if device.type == "cpu" else int(management.get_free_memory(device))
