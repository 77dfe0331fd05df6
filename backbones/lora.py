"""LoRA on a model's attention (Hu et al. 2021), through peft: an adapted model is another `Backbone`.

Its network is a copy of the modules around the very same weights, with low-rank layers beside the projections of
attention. So it takes hardly more memory, and nothing of the model it came from changes. It has a fingerprint of its
own: an inversion by the one is not taken for one by the other. Prompts serve both, as they share the text encoder.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping
from copy import copy, deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from ..engine.autograd import ordinary, plain_torch
from ..engine.ports import Backbone
from ..engine.tensor_file import free_name, read_tensors, write_tensors

log = logging.getLogger(__name__)
T = TypeVar("T")
TARGETS = ("to_q", "to_k", "to_v", "to_out.0")  # of every attention layer
PREFIX = "unet."  # in files, as diffusers names them


@dataclass(frozen=True, eq=False)
class Adapter:
    """Low-rank weights, and the model they belong to."""

    weights: Mapping[str, Tensor]  # by their names in the network, float32 on the CPU
    rank: int
    model: str  # fingerprint of the model they were trained on
    about: str = ""  # what it was trained for, to be shown


@plain_torch
def adapt(
    backbone: Backbone,
    fit: Callable[[Backbone, list[nn.Parameter]], T],
    *,
    rank: int = 16,
    seed: int = 0,
    about: str = "",
    rescue: Callable[[Adapter], object] | None = None,
) -> tuple[Backbone, Adapter, T]:
    """Gives a model an adapter, and `fit` trains it.

    Args:
        fit: is given the model with a fresh adapter, whose output is still that of `backbone`, and the parameters to
            train, in place, in float32 whatever the network's dtype. The model goes by the fingerprint of `backbone`
            as long as it is trained.
        seed: of the fresh adapter; no other random numbers are touched.
        rescue: is given the adapter as it stands if `fit` raises, by an error or a cancel, which then goes on.

    Returns:
        (the adapted model, its adapter, what `fit` returned).

    Raises:
        ValueError: a rank under 1, or a model that has an adapter.
    """
    learning = _with_layers(backbone, rank, seed)
    try:
        result = fit(learning, [p for p in learning.denoiser.network.parameters() if p.requires_grad])
    except BaseException:
        if rescue is not None:
            rescue(_read(learning.denoiser.network, rank, backbone.denoiser.fingerprint, about))
        raise
    adapter = _read(learning.denoiser.network, rank, backbone.denoiser.fingerprint, about)
    return _finished(learning, adapter), adapter, result


@plain_torch
def with_adapter(backbone: Backbone, adapter: Adapter) -> Backbone:
    """The model with an adapter that was trained before.

    Raises:
        ValueError: the adapter belongs to another model, or the model has one already.
    """
    if adapter.model != backbone.denoiser.fingerprint:
        raise ValueError(
            f"this adapter was trained on another model than '{backbone.name}' (fingerprint {adapter.model}, got "
            f"{backbone.denoiser.fingerprint}): connect the model it was trained on, or train one on this model"
        )
    adapted = _with_layers(backbone, adapter.rank, held=adapter.weights)
    for name, parameter in adapted.denoiser.network.named_parameters():
        if "lora_" in name:
            parameter.data.copy_(adapter.weights[name])
    return _finished(adapted, adapter)


def save_adapter(adapter: Adapter, path: Path) -> Path:
    """Writes safetensors with the names that diffusers' `load_lora_weights` knows; what is there is not overwritten.

    Returns:
        The file: `path`, or if that is taken the same with a number.

    Raises:
        OSError: the disk is full, or nothing may be written there.
    """
    path = free_name(path)
    weights = {PREFIX + name.replace(".default", ""): weight for name, weight in adapter.weights.items()}
    told = {"weft_model": adapter.model, "weft_rank": str(adapter.rank), "weft_about": adapter.about}
    write_tensors(path, weights, told)
    return path


def keep_adapter(adapter: Adapter, path: Path) -> None:
    """Saves an adapter that was just trained. A full disk is said in the log: the adapted model is still there."""
    try:
        log.info("the adapter is saved as '%s'", save_adapter(adapter, path))
    except OSError as error:
        log.error("the adapter could not be saved, and is in the adapted model alone: %s", error)


def load_adapter(path: Path) -> Adapter:
    """Reads what `save_adapter` wrote.

    Raises:
        ValueError: no such file, not safetensors, or not an adapter of this pack.
    """
    weights, told = read_tensors(path, "adapter")
    if "weft_model" not in told or not told.get("weft_rank", "").isdecimal():
        raise ValueError(f"'{path.name}' is not an adapter of Weft: want one that Test-Time Adaptation saved")
    if not weights or any(int(told["weft_rank"]) not in weight.shape for weight in weights.values()):
        raise ValueError(f"the adapter '{path.name}' is not of the rank that it says: is the file whole?")
    names = {name: name.removeprefix(PREFIX).replace(".weight", ".default.weight") for name in weights}
    weights = {names[name]: weight.float() for name, weight in weights.items()}
    return Adapter(weights, int(told["weft_rank"]), told["weft_model"], told.get("weft_about", ""))


def _with_layers(backbone: Backbone, rank: int, seed: int = 0, held: Mapping[str, Tensor] | None = None) -> Backbone:
    """A new model with fresh low-rank layers, the only weights of it that can be trained.

    Args:
        held: weights of a file, which must be of just these layers: nothing is made before that is known.
    """
    require_adaptable(backbone, rank)
    from peft import LoraConfig, inject_adapter_in_model

    # Other parameters around the same numbers: when one network is moved, the other stays where it is.
    same = {
        id(p): nn.Parameter(ordinary(p.detach()), requires_grad=False) for p in backbone.denoiser.network.parameters()
    }
    denoiser = copy(backbone.denoiser)
    denoiser.network = deepcopy(denoiser.network, same)
    with torch.device("meta"):  # peft would draw from everybody's random numbers, and take the network's dtype
        inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=list(TARGETS)), denoiser.network)
    own = {name: p.shape for name, p in denoiser.network.named_parameters() if "lora_" in name}
    if held is not None and own != {name: weight.shape for name, weight in held.items()}:
        raise ValueError(f"the adapter has not the layers of '{backbone.name}': is its file whole?")
    _start(denoiser.network, torch.Generator().manual_seed(seed))
    denoiser.memory = denoiser.memory.branch(denoiser.network)
    return replace(backbone, denoiser=denoiser)


def require_adaptable(backbone: Backbone, rank: int) -> None:
    """ValueError for a model that can have no adapter of this rank."""
    try:
        import peft  # noqa: F401
    except ImportError as error:
        raise ValueError(f"adapters need the package peft ({error}): pip install peft") from error
    if rank < 1:
        raise ValueError(f"want a rank of 1 or more, got {rank}")
    if not hasattr(backbone.denoiser, "network"):
        raise ValueError(
            f"'{backbone.name}' is ComfyUI's own model, and adapters are trained on diffusers folders alone: use Load "
            "Model; a LoRA of ComfyUI's goes on the MODEL, before From ComfyUI Model"
        )
    if any("lora_" in name for name, _ in backbone.denoiser.network.named_parameters()):
        raise ValueError(f"'{backbone.name}' has an adapter already: start from the model it was made from")


def _start(network: nn.Module, generator: torch.Generator) -> None:
    """Gives low-rank layers their first weights: A uniform as in `nn.Linear`, B zero (Hu et al., section 4.1).

    In float32: an optimiser's steps are lost in half precision, where AdamW divides by an epsilon that is 0 besides.
    peft computes the layer in the dtype of these weights, and gives its sum in the network's.
    """
    for layer in network.modules():
        if not hasattr(layer, "lora_A"):
            continue
        down, up = layer.lora_A["default"], layer.lora_B["default"]
        for linear in (down, up, down):  # drawn as often as by peft itself, so that a seed keeps its meaning
            drawn = nn.init.kaiming_uniform_(torch.empty(linear.weight.shape), a=5**0.5, generator=generator)
            linear.weight = nn.Parameter(drawn.to(layer.get_base_layer().weight.device))
        nn.init.zeros_(up.weight)


def _read(network: nn.Module, rank: int, model: str, about: str) -> Adapter:
    lora = {name: p for name, p in network.named_parameters() if "lora_" in name}
    return Adapter({name: p.detach().float().cpu().clone() for name, p in lora.items()}, rank, model, about)


def _finished(backbone: Backbone, adapter: Adapter) -> Backbone:
    """Frozen, and known by its weights."""
    denoiser = backbone.denoiser  # a copy of ours
    denoiser.network.requires_grad_(False)
    digest = hashlib.sha256(adapter.model.encode())
    for name, weight in sorted(adapter.weights.items()):
        digest.update(name.encode() + weight.numpy().tobytes())
    denoiser.name, denoiser.fingerprint = f"{backbone.name} + adapter", digest.hexdigest()[:12]
    return replace(backbone, name=denoiser.name)
