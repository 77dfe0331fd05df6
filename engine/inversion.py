"""From a clip to noise: the deterministic sampler run backwards, or noise put on the clip."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor

from .autograd import ordinary, plain_torch
from .monitor import SILENT, Monitor
from .nouns import PLAIN, EditPlan, Evaluation, Prompt, Trajectory
from .sampling import evaluate_with, require_chunks
from .seeds import generator_for

if TYPE_CHECKING:
    from ..backbones.protocol import Backbone

log = logging.getLogger(__name__)
Convention = Literal["warm_start", "paper"]
Noise = Literal["shared", "per_frame"]
BUDGET = 8 * 2**30  # bytes of main memory for a trajectory


@plain_torch
def invert(
    backbone: Backbone,
    latents: Tensor,
    prompt: Prompt,
    *,
    steps: int = 50,
    convention: Convention = "warm_start",
    evaluations: int = 1,
    plan: EditPlan = PLAIN,
    chunk_frames: int = 0,
    budget: int = BUDGET,
    monitor: Monitor = SILENT,
) -> Trajectory:
    """DDIM inversion of a clip under its own prompt, without guidance.

    Args:
        latents: the clip as `backbone.encode` gives it.
        prompt: describes the clip.
        convention: "paper" evaluates the network once a step on the cleaner latents with the noisier label, as
            the papers' code does; good for models that predict epsilon, poor for v. "warm_start" (ours, default)
            guesses the noisier latents with the previous output, evaluates there and takes the exact inverse of
            the sampler's step: one evaluation a step and one more at the start.
        evaluations: per step, for "warm_start"; more reconstruct better, but drift from the noise a model expects.
        plan: attention, feature and evaluation controls that shape the inversion too.
        chunk_frames: evaluate this many frames at a time, for models whose frames do not see each other; 0: all.
        budget: bytes the trajectory may take in main memory.
        monitor: progress and cancel.

    Raises:
        ValueError: bad latents, steps or convention, a prompt of another model, a trajectory over the budget, or
            latents that become NaN.
    """
    if convention not in get_args(Convention):
        raise ValueError(f"no inversion convention '{convention}': want 'warm_start' or 'paper'")
    if evaluations < 1:
        raise ValueError(f"want at least 1 evaluation a step, got {evaluations}")
    if acting := plan.acting_at("before_step") + plan.acting_at("after_step"):
        names = ", ".join(type(c).__name__ for c in acting)
        raise ValueError(f"{names} acts on sampling steps and cannot guide an inversion: connect it to the sampler")
    schedule = backbone.schedule(steps)
    z = _clean(backbone, latents, prompt, steps, budget)
    require_chunks(backbone, len(z), chunk_frames, plan)
    levels = [z.cpu()]
    clean = z if backbone.sees_source else None
    frames = tuple(range(len(z)))
    output = None

    def evaluate(x: Tensor, level: int) -> Tensor:
        call = Evaluation(
            x[None],
            schedule.label(level),
            (prompt,),
            ("source",),
            schedule.steps - level,
            schedule.steps,
            image=clean,
            frames=frames,
            monitor=monitor,
        )
        return evaluate_with(backbone, call, plan, chunk_frames)[0]

    with backbone.resident("network", z[: chunk_frames or None, 0].numel()):
        for level in range(1, schedule.steps + 1):
            if convention == "paper":
                output = evaluate(z, level)
                z = schedule.step(z, output, level - 1, level)
            else:
                output = evaluate(z, level) if output is None else output
                for _ in range(evaluations):
                    output = evaluate(schedule.unstep(z, output, level, level - 1), level)
                z = schedule.unstep(z, output, level, level - 1)
            _require_finite(z, f"inversion became NaN or infinite at step {level} of {steps}: load in float32")
            levels.append(z.cpu())
            monitor.progress(level, schedule.steps, levels[0])
    trajectory = Trajectory(torch.stack(levels), schedule, prompt, convention)
    log.info("inverted %d frames in %d steps (%s): std(z_T) %.3f", len(z), steps, convention, trajectory.noise_std)
    return trajectory


@plain_torch
def add_noise(
    backbone: Backbone,
    latents: Tensor,
    prompt: Prompt,
    *,
    steps: int = 10,
    noise: Noise = "shared",
    seed: int = 0,
    frames: Sequence[int] | None = None,
    budget: int = BUDGET,
) -> Trajectory:
    """The clip with one fixed noise on it at every level: where an edit may start that was not inverted.

    No evaluation of the network. Level k is signal_k * clean + noise_k * eps, with the same eps at every level.

    Args:
        latents: the clip as `backbone.encode` gives it.
        prompt: describes the clip; for a model that takes instructions, the empty one.
        noise: "shared" gives all frames the same noise (VIA, figure 11: "using the same random seed"), "per_frame" each
            its own, which depends on the seed and the frame's number alone.
        frames: the numbers of these frames in the whole clip, for a part of it; by default 0, 1, 2, ...
        budget: bytes the trajectory may take in main memory.

    Raises:
        ValueError: bad latents, steps or noise, a prompt of another model, numbers that are not one a frame, or a
            trajectory over the budget.
    """
    if noise not in get_args(Noise):
        raise ValueError(f"no noise '{noise}': want one of {', '.join(get_args(Noise))}")
    schedule = backbone.schedule(steps)
    z = _clean(backbone, latents, prompt, steps, budget).cpu()
    numbers = range(len(z)) if frames is None else frames
    if len(numbers) != len(z) or min(numbers, default=0) < 0:
        raise ValueError(f"want the numbers of these {len(z)} frames in the whole clip, 0 or more, got {list(numbers)}")
    if noise == "shared":
        eps = torch.randn(z[0].shape, generator=torch.Generator().manual_seed(seed)).expand_as(z)
    else:
        eps = torch.stack([torch.randn(z[0].shape, generator=generator_for(seed, number)) for number in numbers])
    levels = torch.empty(steps + 1, *z.shape)
    levels[0] = z
    for level in range(1, steps + 1):
        levels[level] = schedule.noised(z, eps, level)
    return Trajectory(levels, schedule, prompt, "add_noise")


def _clean(backbone: Backbone, latents: Tensor, prompt: Prompt, steps: int, budget: int) -> Tensor:
    """Level 0 of a trajectory [F, C, h, w] on the model's device, checked with its prompt."""
    if prompt.model != backbone.fingerprint:
        raise ValueError(f"the prompt '{prompt.text}' was encoded by another model: encode it with '{backbone.name}'")
    z = backbone.scale(ordinary(latents)).to(backbone.device, torch.float32)
    if len(prompt.embedding) not in (1, len(z)):
        raise ValueError(f"the prompt has embeddings for {len(prompt.embedding)} frames, the clip has {len(z)}")
    if (size := (steps + 1) * z.numel() * 4) > budget:
        raise ValueError(
            f"the trajectory would take {size / 2**30:.1f} GB and {budget / 2**30:.1f} GB are allowed: use fewer "
            "frames or steps, or smaller frames"
        )
    _require_finite(z, "the latents to invert hold NaN or infinity: check the frames and the VAE's precision")
    return z


def _require_finite(z: Tensor, complaint: str) -> None:
    if not torch.isfinite(z).all():
        raise ValueError(complaint)
