"""From noise to the edited clip: the one sampling loop, and where controls act in it."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .autograd import plain_torch
from .monitor import SILENT, Monitor
from .nouns import PLAIN, EditPlan, Evaluation, Prompt, Row, Step, Trajectory

if TYPE_CHECKING:
    from ..backbones.protocol import Backbone


@plain_torch
def edit(
    backbone: Backbone,
    trajectory: Trajectory,
    positive: Prompt,
    *,
    negative: Prompt | None = None,
    plan: EditPlan = PLAIN,
    guidance: float = 7.5,
    image_guidance: float = 1.5,
    chunk_frames: int = 0,
    seed: int = 0,
    monitor: Monitor = SILENT,
) -> Tensor:
    """Samples the edited clip from the source's noise, with the steps and schedule of its trajectory.

    Args:
        positive: what the edited clip shows.
        negative: what guidance moves away from; by default the source's own prompt (STR-Match, Algorithm 1).
        plan: the controls, first outermost. An empty plan is the plain DDIM edit.
        guidance: classifier-free guidance scale w, negative + w (positive - negative); 1 skips the negative.
        image_guidance: the same towards the source's picture, for models that are given it (InstructPix2Pix, Brooks
            et al. 2023, equation 3); others ignore it.
        chunk_frames: evaluate this many frames at a time, for models whose frames do not see each other; 0: all.
        seed: of the random numbers a control may draw; DDIM itself draws none.
        monitor: progress and cancel.

    Returns:
        Latents as `backbone.decode` takes them.

    Raises:
        ValueError: model, prompts or a control do not fit the trajectory, or the latents become NaN.
    """
    negative = trajectory.prompt if negative is None else negative
    trajectory.require(backbone, positive, negative)
    for scale, towards in ((guidance, "a guidance scale"), (image_guidance, "an image guidance scale")):
        if not scale >= 0:
            raise ValueError(f"want {towards} of 0 or more, got {scale}")
    require_chunks(backbone, trajectory.frames, chunk_frames, plan)
    for control in plan.controls:
        control.check(trajectory, backbone)
    schedule = trajectory.schedule
    scales = (guidance, image_guidance if backbone.sees_source else 1.0)
    z = trajectory.latents[-1].to(backbone.device, torch.float32)
    rows = len(guidance_rows(*scales)) + any(c.needs_source for c in plan.controls)
    cells = z[: chunk_frames or None, 0].numel() * max(rows, *(c.rows_worth for c in plan.controls), 0)
    with backbone.resident("network", cells):
        for index, level in enumerate(range(schedule.steps, 0, -1)):
            step = Step(z, level, index, schedule.steps, trajectory, positive, negative, backbone, monitor, seed)
            for control in plan.acting_at("before_step"):
                step = replace(step, latents=control.before_step(step))
            monitor.check()
            output = _guided(step, plan, *scales, chunk_frames)
            clean, _ = schedule.split(step.latents, output, level)
            step = replace(step, latents=schedule.step(step.latents, output, level, level - 1), level=level - 1)
            for control in plan.acting_at("after_step"):
                step = replace(step, latents=control.after_step(step))
            z = step.latents
            if not torch.isfinite(z).all():
                raise ValueError(
                    f"the edit became NaN or infinite at step {index + 1} of {schedule.steps}: lower the strength or "
                    "the guidance scale, or load the model in float32"
                )
            monitor.progress(index + 1, schedule.steps, clean)
    return backbone.unscale(z)


def guidance_rows(guidance: float, image_guidance: float) -> tuple[Row, ...]:
    """The rows that classifier-free guidance at these scales needs."""
    if image_guidance != 1:
        return ("unconditional", "negative", "positive")
    return ("negative", "positive") if guidance != 1 else ("positive",)


def _guided(step: Step, plan: EditPlan, guidance: float, image_guidance: float, chunk_frames: int) -> Tensor:
    """The network's output for the edit, [F, C, h, w], with classifier-free guidance."""
    rows: dict[Row, tuple[Tensor, Prompt]] = {}
    if any(c.needs_source for c in plan.controls):
        rows["source"] = (step.source_latents(), step.trajectory.prompt)
    for name in guidance_rows(guidance, image_guidance):
        rows[name] = (step.latents, step.positive if name == "positive" else step.negative)
    evaluation = Evaluation(
        _rows_of(step.latents, [z for z, _ in rows.values()]),
        step.trajectory.schedule.label(step.level),
        tuple(prompt for _, prompt in rows.values()),
        tuple(rows),
        step.index,
        step.steps,
        image=step.source_latents(0) if step.backbone.sees_source else None,
        frames=tuple(range(step.trajectory.frames)),
        monitor=step.monitor,
    )
    output = dict(zip(rows, evaluate_with(step.backbone, evaluation, plan, chunk_frames)))
    guided = output["positive"]
    if "negative" in output:
        guided = output["negative"] + guidance * (guided - output["negative"])
    if "unconditional" in output:
        guided = guided + (image_guidance - 1) * (output["negative"] - output["unconditional"])
    return guided


def _rows_of(latents: Tensor, rows: list[Tensor]) -> Tensor:
    """[R, F, C, h, w]; where all rows are the edit's own latents they stay one tensor, as a long clip's are many."""
    if all(row is latents for row in rows):
        return latents.expand(len(rows), *latents.shape)
    return torch.stack(rows)


def evaluate_with(backbone: Backbone, evaluation: Evaluation, plan: EditPlan, chunk_frames: int = 0) -> Tensor:
    """The network's output [R, F, C, h, w], float32, under a plan's attention, feature and evaluation controls.

    Evaluation controls see all frames; what they evaluate runs in chunks of `chunk_frames`, unless it is `whole`.
    """

    def network(e: Evaluation) -> Tensor:
        frames = e.latents.shape[1]
        if e.whole or not 0 < chunk_frames < frames:
            e.monitor.check()
            return backbone.predict(e, plan.controls)
        outputs = []
        for first in range(0, frames, chunk_frames):
            e.monitor.check()
            chunk = e.select(range(first, min(first + chunk_frames, frames)))
            outputs.append(backbone.predict(chunk, plan.controls))
        return torch.cat(outputs, 1)

    for control in reversed(plan.acting_at("evaluate")):
        network = partial(control.evaluate, evaluate=network)
    return network(evaluation)


def require_chunks(backbone: Backbone, frames: int, chunk_frames: int, plan: EditPlan) -> None:
    """Refuses chunks of frames where frames see each other.

    Raises:
        ValueError: a negative number, a model with temporal layers, or a control that looks across the clip.
    """
    if chunk_frames < 0:
        raise ValueError(f"want 0 (all frames at once) or more frames a chunk, got {chunk_frames}")
    if not 0 < chunk_frames < frames:
        return
    if not backbone.framewise:
        raise ValueError(
            f"'{backbone.name}' looks at all frames together and cannot run in chunks of {chunk_frames}: set "
            "chunk_frames to 0, or use an image model"
        )
    if crossing := [type(c).__name__ for c in plan.controls if c.needs_all_frames]:
        raise ValueError(
            f"{', '.join(crossing)} looks at all {frames} frames together and cannot run in chunks of {chunk_frames}: "
            "set chunk_frames to 0, or shorten the clip"
        )
