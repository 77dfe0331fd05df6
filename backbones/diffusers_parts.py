"""The parts that diffusers folders share: a 2-D VAE run on frames, a CLIP-like text encoder, the noise schedule."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..engine.autograd import ordinary
from ..engine.schedule import Schedule

FRAMES_AT_ONCE = 8  # through the VAE: the memory of a decode must not grow with the clip
END_OF_WORD = "</w>"  # as CLIP's tokenizer writes it
ACTIVATION_BYTES = 10_486  # a latent cell and byte of precision: what ComfyUI reckons for Stable Diffusion's UNet


def fingerprint(*modules: nn.Module) -> str:
    """12 hex digits from the name, shape and every value of every tensor: weights that differ give another."""
    digest = hashlib.sha256()
    for module in modules:
        for name, tensor in module.state_dict().items():
            checksum = 0
            for part in tensor.detach().flatten().split(2**20):
                checksum = zlib.crc32(part.float().cpu().numpy(), checksum)
            digest.update(f"{name}{list(tensor.shape)}{checksum}".encode())
    return digest.hexdigest()[:12]


def all_finite(clip: Tensor) -> bool:
    """Whether a clip [F, ...] holds numbers alone, looked through a few frames at a time."""
    return all(part.isfinite().all() for part in clip.split(FRAMES_AT_ONCE))


def encode_frames(vae: nn.Module, frames: Tensor, device: torch.device, check: Callable[[], None]) -> Tensor:
    """[F, H, W, 3] in 0..1 -> [F, C, h, w] unscaled, the mode of the posterior."""

    def encode(part: Tensor) -> Tensor:
        check()
        pixels = (ordinary(part).movedim(-1, 1) * 2 - 1).to(device, vae.dtype)
        return vae.encode(pixels).latent_dist.mode().float().cpu()

    return _in_parts(encode, frames)


def decode_latents(vae: nn.Module, latents: Tensor, device: torch.device, check: Callable[[], None]) -> Tensor:
    """[F, C, h, w] unscaled -> [F, H, W, 3] float32 in 0..1."""

    def decode(part: Tensor) -> Tensor:
        check()
        pixels = vae.decode(ordinary(part).to(device, vae.dtype)).sample.float().cpu()
        return (pixels / 2 + 0.5).clamp(0, 1).movedim(1, -1)

    return _in_parts(decode, latents)


def _in_parts(function: Callable[[Tensor], Tensor], clip: Tensor) -> Tensor:
    """A function of a clip's frames, of a few at a time.

    What comes out is written into one tensor and not put together: a minute of 512x512 is 4.5 GB, and would be there
    twice.
    """
    whole = None
    for first in range(0, len(clip), FRAMES_AT_ONCE):
        part = function(clip[first : first + FRAMES_AT_ONCE])
        whole = part.new_empty(len(clip), *part.shape[1:]) if whole is None else whole
        whole[first : first + FRAMES_AT_ONCE] = part
    return whole


def embed_text(tokenizer, encoder: nn.Module, text: str, device: torch.device) -> Tensor:
    """[1, L, E] last hidden state, padded to the tokenizer's length as Stable Diffusion is trained."""
    tokens = _tokenized(tokenizer, text)
    # OpenCLIP-style encoders (SD 2.x, Zeroscope) attend over the padding as well, unless their config says otherwise.
    mask = tokens.attention_mask.to(device) if getattr(encoder.config, "use_attention_mask", False) else None
    return encoder(tokens.input_ids.to(device), attention_mask=mask)[0].float()


def token_texts(tokenizer, text: str) -> tuple[str, ...]:
    """What each position of `embed_text` stands for, as in `Prompt.tokens`."""
    tokens = _tokenized(tokenizer, text)
    ids, given = tokens.input_ids[0].tolist(), tokens.attention_mask[0].tolist()
    pieces = (piece.replace(END_OF_WORD, " ") for piece in tokenizer.convert_ids_to_tokens(ids))
    return tuple(p if here and i not in tokenizer.all_special_ids else "" for p, i, here in zip(pieces, ids, given))


def _tokenized(tokenizer, text: str):
    return tokenizer(
        text, padding="max_length", max_length=tokenizer.model_max_length, truncation=True, return_tensors="pt"
    )


def make_schedule(scheduler_config: dict, steps: int) -> Schedule:
    """DDIM steps for whatever betas, spacing, offset and prediction type a `scheduler_config.json` states.

    Consecutive timesteps are the levels. diffusers instead goes back by 1000 // steps from each, which is the same
    for "leading" spacing, up to one timestep off for "trailing", and more for "linspace" in few steps.

    Raises:
        ValueError: more steps than the model was trained with, or a prediction type that is not supported.
    """
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler.from_config(scheduler_config)
    trained = scheduler.config.num_train_timesteps
    if not 1 <= steps <= trained:
        raise ValueError(f"want 1 to {trained} steps, the noise levels this model was trained with; got {steps}")
    scheduler.set_timesteps(steps)
    # For some numbers of steps (61, 103, ...) rounding makes "trailing" append a timestep -1.
    timesteps = [min(int(t), trained - 1) for t in scheduler.timesteps[:steps].flip(0)]
    alpha_bar = scheduler.alphas_cumprod.double()
    levels = [float(scheduler.final_alpha_cumprod), *alpha_bar[timesteps].tolist()]
    return Schedule.from_alpha_bar(timesteps, levels, scheduler.config.prediction_type)
