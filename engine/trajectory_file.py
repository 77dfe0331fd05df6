"""A trajectory on disk: an inversion is made once, and edited from as often as wished."""

from __future__ import annotations

import json
import math
from pathlib import Path

from .digest import digest
from .ports import Backbone
from .schedule import Schedule
from .source import Inverted, Noised, Trajectory
from .tensor_file import free_name, read_tensors, write_tensors
from .words import Prompt

BESIDE = "beside"  # where there is any
KINDS = {"inverted": (Inverted, ("latents",)), "noised": (Noised, ("clean", "eps"))}


def fingerprint_of(prompt: Prompt) -> str:
    """Of what a prompt says, and of what reads it; what it became there may differ in the last bits by machine."""
    return digest(prompt.text, prompt.encoder, prompt.frames)


def save_trajectory(trajectory: Trajectory, path: Path) -> tuple[Path, int]:
    """Writes a trajectory, with the fingerprints of its model and its prompt. What is there is not overwritten.

    Returns:
        (the file: `path`, or if that is taken the same with a number; its size in bytes).

    Raises:
        ValueError: the disk is full, or nothing may be written there.
    """
    kind = next(kind for kind, (made, _) in KINDS.items() if isinstance(trajectory, made))
    schedule = trajectory.schedule
    told = {
        "weft_trajectory": kind,
        "weft_model": trajectory.model,
        "weft_prompt": fingerprint_of(trajectory.prompt),
        "weft_text": trajectory.prompt.text,
        "weft_convention": trajectory.convention,
        "weft_schedule": json.dumps([schedule.timesteps, schedule.signal, schedule.noise, schedule.prediction]),
    }
    path = free_name(path)
    try:
        held = {name: getattr(trajectory, name) for name in (*KINDS[kind][1], BESIDE)}
        return path, write_tensors(path, {name: t for name, t in held.items() if t is not None}, told)
    except OSError as error:
        raise ValueError(f"the trajectory could not be saved: {error}") from error


def load_trajectory(path: Path, backbone: Backbone, prompt: Prompt) -> Trajectory:
    """Reads what `save_trajectory` wrote.

    Args:
        backbone: the model it was made with.
        prompt: the source's prompt it was made with, encoded with this model.

    Raises:
        ValueError: no such file, not a whole trajectory, or one of another model or prompt.
    """
    tensors, told = read_tensors(path, "trajectory")
    names = {"weft_trajectory", "weft_model", "weft_prompt", "weft_text", "weft_convention", "weft_schedule"}
    kind = told.get("weft_trajectory")
    if not names <= set(told) or kind not in KINDS:
        raise ValueError(f"'{path.name}' is not a trajectory of Weft: want one that Save Trajectory wrote")
    made, parts = KINDS[kind]
    if told["weft_model"] not in ("", backbone.denoiser.fingerprint):
        raise ValueError(
            f"'{path.name}' was inverted with another model than '{backbone.name}' (fingerprint {told['weft_model']}, "
            f"got {backbone.denoiser.fingerprint}): connect the model it was made with"
        )
    if told["weft_prompt"] != fingerprint_of(prompt):
        raise ValueError(
            f"'{path.name}' was made with the source prompt '{told['weft_text'][:200]}', and '{prompt.text[:200]}' is "
            "connected: encode the same text with the same model"
        )
    if any(name not in tensors or not tensors[name].isfinite().all() for name in parts):
        raise ValueError(f"'{path.name}' lacks its latents, or they are no numbers: make it again")
    if BESIDE in tensors and not (hasattr(backbone.codec, "apart") and tensors[BESIDE].isfinite().all()):
        raise ValueError(f"'{path.name}' holds audio beside its picture, which '{backbone.name}' cannot take")
    try:
        schedule = _schedule(told["weft_schedule"])
        held = {name: tensors[name].float() for name in (*parts, BESIDE) if name in tensors}
        known = {"prompt": prompt, "convention": told["weft_convention"], "model": told["weft_model"]}
        trajectory = made(**held, schedule=schedule, **known)
        backbone.codec.unscale(backbone.codec.scale(trajectory.at(0)))  # refuses latents of another shape
    except (ValueError, TypeError, LookupError, ArithmeticError, RuntimeError) as error:
        told = " ".join(str(error).split())[:200]
        raise ValueError(f"'{path.name}' is not a whole trajectory ({told}): make it again") from error
    return trajectory


def _schedule(text: str) -> Schedule:
    timesteps, signal, noise, prediction = json.loads(text)
    if not all(math.isfinite(number) for number in (*timesteps, *signal, *noise)):
        raise ValueError("its noise levels are no numbers")
    return Schedule(tuple(timesteps), tuple(signal), tuple(noise), prediction)
