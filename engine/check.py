"""What an edit refuses before it runs, and before the inversion that it would need."""

from __future__ import annotations

from .autograd import plain_torch
from .plan import PLAIN, EditPlan
from .ports import Backbone
from .regions import Parts, parts_of
from .solver import DDIM, Solver
from .source import Trajectory
from .words import Prompt


@plain_torch
def check_edit(
    backbone: Backbone,
    trajectory: Trajectory,
    positive: Prompt,
    *,
    negative: Prompt | None = None,
    plan: EditPlan = PLAIN,
    solver: Solver = DDIM(),  # noqa: B008  it is frozen
    guidance: float = 7.5,
    image_guidance: float = 1.5,
) -> Parts:
    """All that `edit` refuses before it runs. It reads the clip, the prompts and the plan, and evaluates nothing.

    Before an inversion, the clip itself (`source_of`) stands for its trajectory.

    Raises:
        ValueError: model, prompts, a control or a region do not fit the trajectory or each other.
    """
    for scale, towards in ((guidance, "a guidance scale"), (image_guidance, "an image guidance scale")):
        if not scale >= 0:
            raise ValueError(f"want {towards} of 0 or more, got {scale}")
    denoiser = backbone.denoiser
    negative = trajectory.prompt if negative is None else negative
    image_guidance = image_guidance if denoiser.sees_source else 1.0
    parts = parts_of(plan, trajectory, denoiser.layout, positive, negative, guidance, image_guidance)
    backbone.require(trajectory, trajectory.prompt, negative, *parts.prompts)
    solver.check(trajectory, denoiser)
    for part in parts:
        part.plan.check(trajectory, denoiser, part.positive)
    return parts


def check_start(backbone: Backbone, plan: EditPlan, *prompts: Prompt) -> None:
    """What of it can be refused where the clip is not known yet.

    Raises:
        ValueError: a prompt of another text encoder, or controls that cannot act in this model or together.
    """
    for prompt in prompts:
        backbone.require_prompt(prompt, prompt.frames)
    plan.fits(backbone.denoiser)
