"""From a clip to noise: the deterministic sampler run backwards, or noise put on the clip."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor

from .autograd import ordinary, plain_torch
from .beside import parts_of
from .call import Evaluation, Run
from .evaluate import Chunks, evaluate_with
from .monitor import SILENT, Monitor
from .plan import PLAIN, EditPlan, name_of
from .ports import Backbone, Predict
from .resume import Resume
from .seeds import generator_for
from .source import Inverted, Noised
from .words import SOURCE, Prompt

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
    edit_steps: int = 0,
    budget: int = BUDGET,
    resume: Path | None = None,
    monitor: Monitor = SILENT,
) -> Inverted:
    """DDIM inversion of a clip under its own prompt, without guidance.

    Args:
        latents: the clip as `backbone.codec.encode` gives it.
        prompt: describes the clip.
        convention: "paper" evaluates the network once a step on the cleaner latents with the noisier label, as
            the papers' code does; good for models that predict epsilon, poor for v. "warm_start" (default; on
            flow models it is Uni-Inv, arXiv 2504.13109) guesses the noisier latents with the previous output,
            evaluates there and takes the exact inverse of the sampler's step: one evaluation a step and one more at
            the start.
        evaluations: per step, for "warm_start"; more reconstruct better, but drift from the noise a model expects.
        plan: attention, feature and evaluation controls that shape the inversion too.
        chunk_frames: evaluate this many frames at a time, for models whose frames do not see each other; 0: as many
            as fit.
        edit_steps: of the edit, if it is to take fewer steps than the inversion: every so many levels are kept. Must
            divide `steps`; 0: as many.
        budget: bytes the trajectory may take in main memory.
        resume: a folder in which every step is kept: run again, whatever stopped it, only the missing steps are
            evaluated, and the bits are the same. It takes a little more than the trajectory; nothing there is deleted.
        monitor: progress and cancel.

    Raises:
        ValueError: bad latents, steps or convention, a prompt of another model, a trajectory over the budget, latents
            that become NaN, or a plan that cannot be resumed.
    """
    if convention not in get_args(Convention):
        raise ValueError(f"no inversion convention '{convention}': want 'warm_start' or 'paper'")
    if evaluations < 1:
        raise ValueError(f"want at least 1 evaluation a step, got {evaluations}")
    if plan.regions:
        raise ValueError("regions are of an edit, and an inversion has none: connect them to Edit Sampler's plan")
    if only := [name_of(c) for c in plan.controls if c.needs().edit]:
        raise ValueError(
            f"{', '.join(only)} acts on an edit, and an inversion has none: connect it to Edit Sampler's plan"
        )
    if acting := plan.acting_at("before_step") + plan.acting_at("after_step"):
        names = ", ".join(map(name_of, acting))
        raise ValueError(f"{names} acts on sampling steps and cannot guide an inversion: connect it to the sampler")
    denoiser, schedule = backbone.denoiser, backbone.denoiser.schedule(steps)
    kept = schedule.thinned(edit_steps or steps)
    every = steps // kept.steps
    clean, beside = _clean(backbone, latents, prompt)
    _require_budget(clean, kept.steps, budget)
    chunks = Chunks.asked(denoiser, len(clean), chunk_frames, plan)
    plan.check(Noised(clean, torch.zeros(()), schedule, prompt), denoiser, None)
    levels = torch.empty(kept.steps + 1, *clean.shape)
    levels[0] = clean
    run = Run(steps=steps, monitor=monitor)
    of_clip = (clean, schedule, prompt.cond) if beside is None else (clean, beside, schedule, prompt.cond)
    bits = (denoiser.fingerprint, denoiser.device.type, *of_clip, convention, evaluations, plan)
    saved = Resume.of(bits, resume, every)
    done, *state = saved.read(levels)

    def evaluate(predict: Predict, x: Tensor, level: int, image: Tensor | None) -> Tensor:
        at = replace(run, step=steps - level)
        evaluation = Evaluation(x[None], schedule.label(level), (prompt,), (SOURCE,), image=image, run=at)
        return evaluate_with(predict, evaluation, plan, chunks)[0]

    def body(predict: Predict) -> None:
        chunks.fit(denoiser, 1, tuple(clean.shape[-2:]))
        z = clean.to(denoiser.device)
        network = partial(evaluate, predict, image=z if denoiser.sees_source else None)
        z, output = (z, None) if not done else (t.to(denoiser.device) for t in state)
        for level in range(done + 1, steps + 1):
            if convention == "paper":
                output = network(z, level)
                z = schedule.step(z, output, level - 1, level)
            else:
                output = network(z, level) if output is None else output
                for _ in range(evaluations):
                    output = network(schedule.unstep(z, output, level, level - 1), level)
                z = schedule.unstep(z, output, level, level - 1)
            _require_finite(z, f"inversion became NaN or infinite at step {level} of {steps}: load in float32")
            if level % every == 0:
                levels[level // every] = z
            saved.write(level, z, output)
            monitor.progress(level, steps, levels[0])

    size = tuple(clean.shape[-2:])
    reserve = denoiser.bytes(1, chunks.size, size) + plan.bytes(denoiser, 1, len(clean), size)
    if done < steps:
        denoiser.session([prompt], clean, schedule, body, reserve=reserve, beside=beside)
    trajectory = Inverted(levels, kept, prompt, convention, denoiser.fingerprint, beside)
    log.info("inverted %d frames in %d steps (%s): std(z_T) %.3f", len(clean), steps, convention, trajectory.noise_std)
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
) -> Noised:
    """The clip with one fixed noise on it at every level: where an edit may start that was not inverted.

    No evaluation of the network. Level k is signal_k * clean + noise_k * eps, with the same eps at every level.

    Args:
        latents: the clip as `backbone.codec.encode` gives it.
        prompt: describes the clip; for a model that takes instructions, the empty one.
        noise: "shared" gives all frames the same noise (VIA, figure 11: "using the same random seed"), "per_frame" each
            its own, which depends on the seed and the frame's number alone.
        frames: the numbers of these frames in the whole clip, for a part of it; by default 0, 1, 2, ...

    Raises:
        ValueError: bad latents, steps or noise, a prompt of another model, or numbers that are not one a frame.
    """
    if noise not in get_args(Noise):
        raise ValueError(f"no noise '{noise}': want one of {', '.join(get_args(Noise))}")
    schedule = backbone.denoiser.schedule(steps)
    z, beside = _clean(backbone, latents, prompt)
    numbers = range(len(z)) if frames is None else frames
    if len(numbers) != len(z) or min(numbers, default=0) < 0:
        raise ValueError(f"want the numbers of these {len(z)} frames in the whole clip, 0 or more, got {list(numbers)}")
    if noise == "shared":
        eps = torch.randn(z[0].shape, generator=torch.Generator().manual_seed(seed)).expand_as(z)
    else:
        eps = torch.stack([torch.randn(z[0].shape, generator=generator_for(seed, number)) for number in numbers])
    return Noised(z, eps, schedule, prompt, beside=beside)


def source_of(backbone: Backbone, latents: Tensor, prompt: Prompt, steps: int) -> Noised:
    """The clip itself, without noise, for a solver that brings its own.

    Raises:
        ValueError: bad latents or steps, or a prompt of another model.
    """
    clean, beside = _clean(backbone, latents, prompt)
    return Noised(clean, torch.zeros(()), backbone.denoiser.schedule(steps), prompt, "clean", beside=beside)


def _clean(backbone: Backbone, latents: Tensor, prompt: Prompt) -> tuple[Tensor, Tensor | None]:
    """Level 0 of a trajectory [F, C, h, w], float32 on the CPU, checked with its prompt; what stands beside it."""
    picture, beside = parts_of(backbone, latents)
    z = backbone.codec.scale(ordinary(picture)).to("cpu", torch.float32)
    backbone.require_prompt(prompt, len(z))
    _require_finite(z, "the latents to invert hold NaN or infinity: check the frames and the VAE's precision")
    return z, beside


def _require_budget(z: Tensor, steps: int, budget: int) -> None:
    if (size := (steps + 1) * z.numel() * 4) > budget:
        raise ValueError(
            f"the trajectory would take {size / 2**30:.1f} GB and {budget / 2**30:.1f} GB are allowed: use fewer "
            "frames or steps, or smaller frames"
        )


def _require_finite(z: Tensor, complaint: str) -> None:
    if not torch.isfinite(z).all():
        raise ValueError(complaint)
