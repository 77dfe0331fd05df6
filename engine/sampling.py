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
    seed: int = 0,
    monitor: Monitor = SILENT,
) -> Tensor:
    """Samples the edited clip from the source's noise, with the steps and schedule of its trajectory.

    Args:
        positive: what the edited clip shows.
        negative: what guidance moves away from; by default the source's own prompt (STR-Match, Algorithm 1).
        plan: the controls, first outermost. An empty plan is the plain DDIM edit.
        guidance: classifier-free guidance scale w, negative + w (positive - negative); 1 skips the negative.
        seed: of the random numbers a control may draw; DDIM itself draws none.
        monitor: progress and cancel.

    Returns:
        Latents as `backbone.decode` takes them.

    Raises:
        ValueError: model, prompts or a control do not fit the trajectory, or the latents become NaN.
    """
    negative = trajectory.prompt if negative is None else negative
    trajectory.require(backbone, positive, negative)
    if not guidance >= 0:
        raise ValueError(f"want a guidance scale of 0 or more, got {guidance}")
    for control in plan.controls:
        control.check(trajectory, backbone)
    schedule = trajectory.schedule
    z = trajectory.latents[-1].to(backbone.device, torch.float32)
    rows = (guidance != 1) + 1 + any(c.needs_source for c in plan.controls)
    cells = z[:, 0].numel() * max(rows, *(c.rows_worth for c in plan.controls), 0)
    with backbone.resident("network", cells):
        for index, level in enumerate(range(schedule.steps, 0, -1)):
            step = Step(z, level, index, schedule.steps, trajectory, positive, negative, backbone, monitor, seed)
            for control in plan.acting_at("before_step"):
                step = replace(step, latents=control.before_step(step))
            monitor.check()
            output = _guided(step, plan, guidance)
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


def _guided(step: Step, plan: EditPlan, guidance: float) -> Tensor:
    """The network's output for the edit, [F, C, h, w], with classifier-free guidance."""
    rows: dict[Row, tuple[Tensor, Prompt]] = {}
    if any(c.needs_source for c in plan.controls):
        rows["source"] = (step.source_latents(), step.trajectory.prompt)
    if guidance != 1:
        rows["negative"] = (step.latents, step.negative)
    rows["positive"] = (step.latents, step.positive)
    evaluation = Evaluation(
        torch.stack([z for z, _ in rows.values()]),
        step.trajectory.schedule.label(step.level),
        tuple(prompt for _, prompt in rows.values()),
        tuple(rows),
        step.index,
    )
    output = dict(zip(rows, evaluate_with(step.backbone, evaluation, plan)))
    if guidance == 1:
        return output["positive"]
    return output["negative"] + guidance * (output["positive"] - output["negative"])


def evaluate_with(backbone: Backbone, evaluation: Evaluation, plan: EditPlan) -> Tensor:
    """The network's output [R, F, C, h, w], float32, under a plan's attention, feature and evaluation controls."""

    def network(e: Evaluation) -> Tensor:
        return backbone.predict(e, plan.controls)

    for control in reversed(plan.acting_at("evaluate")):
        network = partial(control.evaluate, evaluate=network)
    return network(evaluation)
