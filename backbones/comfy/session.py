"""The engine's loops inside core's own sampling run: a CFGGuider, and a Sampler whose body is ours.

Core loads the model, encodes every conditioning for this clip, applies LoRAs, hooks and ControlNets, and cleans up;
the loop is the engine's. Options go into core's copy of the model options: nothing of ours is on the MODEL, ever.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import comfy.model_management as management
import comfy.samplers
import comfy.utils
import torch
from comfy.patcher_extension import WrappersMP, add_wrapper_with_key, copy_nested_dicts
from torch import Tensor

from ...engine.autograd import ordinary
from .other_packs import as_written, plain_clone

T = TypeVar("T")
OURS = "weft"  # key of our wrappers among those of other packs
Conditioning = list[dict[str, Any]]  # as core encodes it for one clip


class Inside:
    """What there is inside a sampling run: the loaded network, encoded conditionings, options."""

    def __init__(self, guider: comfy.samplers.CFGGuider, options: dict, latent: Tensor):
        self.model, self.patcher, encoded = guider.inner_model, guider.model_patcher, guider.conds
        self.options, self.latent = options, latent
        self.shapes = getattr(self.model, "latent_shapes", None) or ()  # of streams packed into one latent
        # They were made in inference mode, and a gradient may have to pass them.
        self.encoded = {name: [_ordinary_entry(entry) for entry in some] for name, some in encoded.items()}

    @torch.inference_mode()
    def load_again(self, reserve: int) -> None:
        """Where another model may have taken the place of this one's weights; beside them `reserve` bytes stay free."""
        need = int(self.model.memory_required(list(self.latent.shape)))
        management.load_models_gpu([self.patcher], memory_required=max(need, reserve))

    def clean(
        self,
        conditionings: Sequence[Conditioning],
        x: Tensor,
        sigma: float,
        options: Mapping[str, Any],
        turn: Callable[[list[int]], None] = lambda numbers: None,
        one_row: bool = False,
        ours: bool = False,
    ) -> list[Tensor]:
        """x0 of the picture under each conditioning, for core's latents x of the picture at one sigma.

        Args:
            options: core's transformer options.
            turn: told, before each evaluation of the network, which of the conditionings are in its batch.
            one_row: one conditioning at a time.
            ours: gradients or controls pass the network: it runs here, as it is written, and on no other device.
        """
        levels = torch.full((len(x),), sigma, device=x.device)  # as in sample_sigmas, which core compares it with
        x, some = self._packed(x, levels), list(conditionings)
        groups = [[i] for i in range(len(some))] if one_row else [list(range(len(some)))]
        made = []
        for group in groups:
            heard = self._heard(options, lambda numbers, group=group: turn([group[i] for i in numbers]), ours)
            made += comfy.samplers.calc_cond_batch(self.model, [some[i] for i in group], x, levels, heard)
        return [self._picture(x0) for x0 in made]

    def _heard(self, options: Mapping[str, Any], turn: Callable[[list[int]], None], ours: bool) -> dict[str, Any]:
        """Core's model options for one evaluation, in which `turn` is told what is evaluated."""

        def told(executor, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options={}, **rest):  # noqa: B006
            turn(list(transformer_options["cond_or_uncond"]))
            return executor(x, t, c_concat, c_crossattn, control, transformer_options, **rest)

        own = {**options, "wrappers": copy_nested_dicts(options.get("wrappers", {}))}
        add_wrapper_with_key(WrappersMP.APPLY_MODEL, OURS, told, own)
        whole = {**self.options, "transformer_options": own}
        return as_written(whole) if ours else whole

    def _packed(self, picture: Tensor, sigma: Tensor) -> Tensor:
        """Core's latents of the picture, with what stands beside it clean, at a level of its own that says so."""
        if len(self.shapes) < 2:
            return picture
        kept = self.model.scale_latent_inpaint(
            sigma=sigma, noise=torch.zeros_like(self.latent), latent_image=self.latent
        )
        beside = comfy.utils.unpack_latents(kept, self.shapes)[1:]
        return comfy.utils.pack_latents([picture, *(part.to(picture) for part in beside)])[0]

    def _picture(self, x: Tensor) -> Tensor:
        return x if len(self.shapes) < 2 else comfy.utils.unpack_latents(x, self.shapes)[0]


def run_inside(
    patcher,
    conditionings: Mapping[str, list],
    latent: Tensor,
    sigmas: Tensor,
    body: Callable[[Inside], T],
    reserve: int,
    beside: Tensor | None = None,
) -> T:
    """`body`, in a sampling run of core's.

    Args:
        conditionings: in core's form, by any name.
        latent: of the clip, as core's wires carry it; only its shape and what is conditioned on it matter.
        sigmas: [S+1] falling to 0, of the run.
        reserve: bytes that `body` will want beside the weights.
        beside: what stands beside the picture in a packed latent; the network sees it clean.
    """
    guider = comfy.samplers.CFGGuider(plain_clone(patcher))
    guider.model_options = copy_nested_dicts(guider.model_options)
    add_wrapper_with_key(
        WrappersMP.PREPARE_SAMPLING, OURS, _with_room(reserve), guider.model_options, is_model_options=True
    )
    guider.inner_set_conds(dict(conditionings))
    sampler = _Body(body)
    with torch.inference_mode():  # as core runs every node: its weights and caches are inference tensors
        noise, latent, mask = _nested(latent, beside)
        guider.sample(noise, latent, sampler, sigmas, denoise_mask=mask, disable_pbar=True, seed=0)
    return sampler.result


def _nested(latent: Tensor, beside: Tensor | None) -> tuple[Any, Any, Any]:
    """(no noise, the latent, what of it is to be made) of core's sampling."""
    if beside is None:
        return torch.zeros_like(latent), latent, None
    from comfy.nested_tensor import NestedTensor  # older core has none, and no model for it

    both = (latent, beside)
    mask = [torch.ones_like(latent), torch.zeros_like(beside)]
    return NestedTensor([torch.zeros_like(x) for x in both]), NestedTensor(both), NestedTensor(mask)


class _Body(comfy.samplers.Sampler):
    """Runs a function where core would run its sampler."""

    def __init__(self, body: Callable[[Inside], Any]):
        self.body, self.result = body, None

    def sample(self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None, *args, **kwargs):
        with torch.inference_mode(False), torch.no_grad():
            options, latent = extra_args["model_options"], _ordinary(latent_image)
            self.result = self.body(Inside(model_wrap, options, latent))
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
