"""The parts that diffusers folders share: a 2-D VAE run on frames, the noise schedule."""

from __future__ import annotations

import hashlib
import logging
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ...engine.autograd import ordinary
from ...engine.parts import run_in_parts
from ...engine.schedule import Schedule
from ..memory import Memory

log = logging.getLogger(__name__)
FRAMES_AT_ONCE = 8  # through the VAE at most: more are no faster, and their memory must not grow with the clip
# What a VAE takes for one frame, in planes of all its pixels as wide as its finest layers. torch's profiler counts 5.3
# for encoding and 4.3 for decoding with Stable Diffusion's layout, whatever its widths; the rest is room for what
# convolutions need to work, as much as ComfyUI allows (1767 and 2178 numbers a pixel for widths 128 and 256).
ENCODING_PLANES, DECODING_PLANES = 14.0, 8.6
UNKNOWN = 2e9  # bytes to take where nobody knows what is free, as in main memory, which hardly gains by more frames
BRIGHTEST = 2.0  # some way over 1, as sharpening leaves it; frames in 0..255 are far beyond
MOST_TIMESTEPS = 100_000  # any model was trained with 1,000 or so: more is a broken config
BLOCKS, BLOCK = 2048, 64  # of a large tensor, what a fingerprint reads
ACTIVATION_BYTES = 10_486  # a latent cell and byte of precision: what ComfyUI reckons for Stable Diffusion's UNet


def fingerprint(*modules: nn.Module) -> str:
    """12 hex digits from the name and shape of every tensor and from values spread over it: of tensors with at most
    BLOCKS x BLOCK values all of them, of larger ones so many, always the same.

    Another training, an adapter merged in or another file of any one tensor changes some of them for sure: it changes
    nearly all values. What may escape is a change of a few single values or rows of a large tensor. All values of a
    network of 14 billion would take half a minute; these take a second.
    """
    digest = hashlib.sha256()
    for module in modules:
        tensors = module.state_dict()
        for name, tensor in zip(_without_shared_levels(list(tensors)), tensors.values()):
            checksum = zlib.crc32(_sample(tensor).float().cpu().numpy())
            digest.update(f"{name}{list(tensor.shape)}{checksum}".encode())
    return digest.hexdigest()[:12]


def _without_shared_levels(names: list[str]) -> list[str]:
    """Some versions of a library have a level more around all names of a model."""
    while names and all("." in name for name in names) and len({name.split(".")[0] for name in names}) == 1:
        names = [name.split(".", 1)[1] for name in names]
    return names


def _sample(tensor: Tensor) -> Tensor:
    """All values, or BLOCKS runs of BLOCK neighbours at equal distances, from the first value to the last."""
    flat = tensor.detach().flatten()
    if flat.numel() <= BLOCKS * BLOCK:
        return flat.contiguous()
    starts = torch.linspace(0, flat.numel() - BLOCK, BLOCKS, dtype=torch.float64, device=flat.device).long()
    return flat.unfold(0, BLOCK, 1)[starts]


def all_finite(clip: Tensor) -> bool:
    """Whether a clip [F, ...] holds numbers alone, looked through a few frames at a time."""
    return all(part.isfinite().all() for part in clip.split(FRAMES_AT_ONCE))


def require_pictures(frames: Tensor) -> None:
    """ValueError for frames [F, ...] that are no floats in 0..1, but for a little over."""
    if not frames.is_floating_point():
        raise ValueError(f"want frames as floats in 0..1, got {frames.dtype}: divide them by 255")
    if not all_finite(frames):
        raise ValueError("the frames hold NaN or infinity")
    if (brightest := max(part.abs().max() for part in frames.split(FRAMES_AT_ONCE))) > BRIGHTEST:
        raise ValueError(
            f"want frames in 0..1, got values up to {brightest:g}: if they are in 0..255, divide them by 255"
        )


def encode_frames(vae: nn.Module, frames: Tensor, memory: Memory, check: Callable[[], None]) -> Tensor:
    """[F, H, W, 3] in 0..1 -> [F, C, h, w] unscaled, the mode of the posterior; float32 on the CPU."""

    def encode(part: Tensor) -> Tensor:
        pixels = (ordinary(part).movedim(-1, 1) * 2 - 1).to(memory.device, vae.dtype)
        return vae.encode(pixels).latent_dist.mode().float().cpu()

    return _frames_through(vae, encode, frames, encoding_bytes(vae, *frames.shape[1:3]), memory, check)


def decode_latents(vae: nn.Module, latents: Tensor, memory: Memory, check: Callable[[], None]) -> Tensor:
    """[F, C, h, w] unscaled -> [F, H, W, 3] float32 in 0..1, on the CPU."""

    def decode(part: Tensor) -> Tensor:
        return vae.decode(ordinary(part).to(memory.device, vae.dtype)).sample.float().cpu().movedim(1, -1)

    frames = _frames_through(vae, decode, latents, decoding_bytes(vae, *latents.shape[2:]), memory, check)
    return frames.div_(2).add_(0.5).clamp_(0, 1)  # after infinity was looked for, which this would hide


def encoding_bytes(vae: nn.Module, height: int, width: int) -> int:
    """Memory to encode one frame of so many pixels, beside the weights. Modelled: see `ENCODING_PLANES`."""
    return int(ENCODING_PLANES * vae.config.block_out_channels[0] * height * width * vae.dtype.itemsize)


def decoding_bytes(vae: nn.Module, height: int, width: int) -> int:
    """Memory to decode one frame of so many latent cells, beside the weights. Modelled: see `DECODING_PLANES`."""
    widths = vae.config.block_out_channels
    pixels = height * width * 4 ** (len(widths) - 1)
    return int(DECODING_PLANES * max(widths[:2]) * pixels * vae.dtype.itemsize)


def _frames_through(vae: nn.Module, function, clip: Tensor, bytes_a_frame: int, memory: Memory, check) -> Tensor:
    """A function of a clip's frames by way of the VAE, of as many at a time as there is memory for."""
    with memory.resident(vae, bytes_a_frame), _finite(vae, function) as careful:

        def run(part: Tensor) -> Tensor:
            check()
            return careful(part)

        free = memory.free()
        fitting = int((UNKNOWN if free is None else free) // bytes_a_frame)
        return run_in_parts(run, clip, max(1, min(FRAMES_AT_ONCE, fitting)))


@contextmanager
def _finite(vae: nn.Module, function: Callable[[Tensor], Tensor]) -> Iterator[Callable[[Tensor], Tensor]]:
    """The function as it is while what it gives is finite; from where it is not, with the VAE in float32.

    The VAE is in its own precision again afterwards.
    """
    own = vae.dtype

    def careful(part: Tensor) -> Tensor:
        made = function(part)
        if vae.dtype == torch.float32 or made.isfinite().all():
            return made
        log.warning("the VAE gives what is no number in %s: it goes on in float32 for this clip", vae.dtype)
        nn.Module.to(vae, torch.float32)
        return function(part)

    try:
        yield careful
    finally:
        nn.Module.to(vae, own)


def make_schedule(scheduler_config: dict, steps: int) -> Schedule:
    """DDIM steps for whatever betas, spacing, offset and prediction type a `scheduler_config.json` states.

    Consecutive timesteps are the levels. diffusers instead goes back by 1000 // steps from each, which is the same
    for "leading" spacing, up to one timestep off for "trailing", and more for "linspace" in few steps.

    Raises:
        ValueError: no betas, or such that make no noise levels; more steps than the model was trained with; or a
            spacing or prediction type that is not supported.
    """
    scheduler = _ddim(scheduler_config)
    trained = scheduler.config.num_train_timesteps
    if not 1 <= steps <= trained:
        raise ValueError(f"want 1 to {trained} steps, the noise levels this model was trained with; got {steps}")
    scheduler.set_timesteps(steps)
    # For some numbers of steps (61, 103, ...) rounding makes "trailing" append a timestep -1.
    timesteps = [int(t) for t in scheduler.timesteps[:steps].flip(0)]
    # "leading" rounds its stride down: 600 steps of 1000 would end at 599, far from the noise. Such are spread evenly.
    stride = trained // steps
    if scheduler.config.timestep_spacing == "leading" and trained - steps * stride >= stride:
        timesteps = [k * trained // steps + scheduler.config.steps_offset for k in range(steps)]
    beyond = max(0, timesteps[-1] - (trained - 1))  # an offset with as many steps as the model was trained with
    timesteps = [t - beyond for t in timesteps]
    alpha_bar = scheduler.alphas_cumprod.double()
    levels = [float(scheduler.final_alpha_cumprod), *alpha_bar[timesteps].tolist()]
    return Schedule.from_alpha_bar(timesteps, levels, scheduler.config.prediction_type)


def _ddim(config: dict):
    """diffusers' DDIMScheduler with the betas that a config states."""
    from diffusers import CogVideoXDDIMScheduler, DDIMScheduler, DDPMScheduler

    of = f"the scheduler of this model ({config.get('_class_name', 'no class')})"
    trained = config.get("num_train_timesteps", 1000)
    if not isinstance(trained, int) or not 1 <= trained <= MOST_TIMESTEPS:
        raise ValueError(f"{of} states {str(trained)[:40]} training timesteps: want a number in 1..{MOST_TIMESTEPS}")
    if not config.get("trained_betas") and not {"beta_start", "beta_end"} <= set(config):
        raise ValueError(
            f"{of} states no betas, as models of flow matching or EDM do not, and those are not supported: want a "
            "model with beta_start and beta_end in its scheduler_config.json"
        )
    try:
        try:
            # The one shifts its noise levels by a factor that the other ignores.
            kind = CogVideoXDDIMScheduler if "snr_shift_scale" in config else DDIMScheduler
            scheduler = kind.from_config(config)
        except NotImplementedError:  # betas that DDIM does not know, and DDPM may: sigmoid
            betas = DDPMScheduler.from_config(config).betas.tolist()
            scheduler = DDIMScheduler.from_config({**config, "beta_schedule": "linear", "trained_betas": betas})
    except (NotImplementedError, ArithmeticError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"no noise levels can be made of {of}: {str(error)[:200]}") from error
    alpha_bar = scheduler.alphas_cumprod
    if len(alpha_bar) != trained or not ((alpha_bar >= 0) & (alpha_bar <= 1)).all() or (alpha_bar.diff() > 0).any():
        raise ValueError(f"the betas of {of} are no noise that grows over {trained} timesteps: is the file whole?")
    return scheduler
