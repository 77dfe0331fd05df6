"""What is done to a clip: controls, the regions they act in, and how they nest."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar, Literal

from torch import Tensor

from .autograd import ordinary
from .call import Attend, Call, Evaluation, Features
from .monitor import Monitor
from .source import Trajectory
from .words import Block, Model, Prompt, Site

Slot = Literal["inject", "output", "map", "keys"]
# The first is outermost; wire order decides only among equals. At an attention call the source's queries and keys come
# in first, so that all else acts on what is really used; an output is changed after every map behind it; keys are
# chosen last, next to the softmax, where a map of another row has them chosen in the same way.
ATTENTION_ORDER: tuple[Slot, ...] = ("inject", "output", "map", "keys")
# Around an evaluation a map may want a pass of its own before anything chooses frames.
EVALUATE_ORDER: tuple[Slot, ...] = ("map", "inject", "output", "keys")
# What a control does to the keys of self-attention. "frames" adds up; "bases" stand for all frames of an evaluation;
# "bank" gives all frames the keys of a few.
Keys = Literal["own", "frames", "bases", "bank"]


@dataclass(frozen=True)
class Needs:
    """What a control wants of a run."""

    source: bool = False  # the source runs beside the edit: `call.source`
    all_frames: bool = False  # its attention or features look across the clip: no chunks of frames
    picks_frames: bool = False  # it evaluates some frames on their own
    framewise: bool = False  # a model that evaluates frames one by one
    edit: bool = False  # the rows of an edit: it has nothing to do in an inversion
    keys: Keys = "own"


@dataclass(frozen=True, eq=False)
class Step:
    """Where the sampler is when it asks a control to act before or after a step."""

    latents: Tensor  # [F, C, h, w] of the edit, at `level`
    level: int  # the noise level `latents` is at
    index: int  # 0 is the first, noisiest step
    steps: int
    trajectory: Trajectory  # the source, in the same noise as the edit
    positive: Prompt
    model: Model
    monitor: Monitor
    seed: int
    kept: dict  # what a control makes once a run; empty at its start
    # What the layers of the edit's next evaluation project, without evaluating further than the last of them:
    # (edit's latents at `level` or None for the source alone, source's latents, layers) -> layer -> call
    read: Callable[[Tensor | None, Tensor, frozenset[str]], Mapping[str, Call]]

    @property
    def progress(self) -> float:
        """Share of the run that lies behind this step, 0 at the first."""
        return self.index / self.steps

    def source_latents(self, level: int | None = None) -> Tensor:
        """[F, C, h, w] of the source at a noise level, by default that of `latents`, on their device."""
        return self.trajectory.at(self.level if level is None else level).to(self.latents)


@dataclass(frozen=True, eq=False)
class Control:
    """One change to a run. A method subclasses this and overrides only the seams it acts at; these do nothing."""

    slot: ClassVar[Slot] = "output"
    title: ClassVar[str] = ""  # as its node is called, where that is not the class's name in words
    looks_only: ClassVar[bool] = False  # at calls as layers project them; its `attention` changes nothing

    def needs(self) -> Needs:
        return Needs()

    def bytes(self, model: Model, rows: int, frames: int, size: tuple[int, int]) -> int:
        """Memory it takes beside the evaluation of the edit, reckoned."""
        return 0

    def fits(self, model: Model) -> None:
        """Raise a ValueError now, before a clip is known, if this control cannot act in this model."""

    def check(self, trajectory: Trajectory, model: Model, target: Prompt | None) -> None:
        """Raise a ValueError now, before anything runs, if this control cannot act on this clip and prompt.

        Args:
            target: what the edited clip shows; None in an inversion.
        """

    def looks_at(self, place: Site | Block) -> bool:
        """Whether it uses what the source has at a place; a backbone may drop all else of it."""
        return True

    def joined(self, other: Control) -> Control | None:
        """One control that does what both do, where two of a kind must not act one after the other."""
        return None

    def attention(self, call: Call, attend: Attend) -> Tensor:
        """The output [R, G, H, M, D] of one attention call; `attend(call)` is what it gives further in."""
        return attend(call)

    def feature(self, features: Features) -> Tensor:
        """Read or replace the features [R, F, C, h, w] of a block."""
        return features.x

    def evaluate(self, evaluation: Evaluation, evaluate: Callable[[Evaluation], Tensor]) -> Tensor:
        """Wrap the network evaluation of a step; returns its output [R, F, C, h, w]."""
        return evaluate(evaluation)

    def before_step(self, step: Step) -> Tensor:
        """Latents to evaluate instead of `step.latents`."""
        return step.latents

    def after_step(self, step: Step) -> Tensor:
        """Latents to go on with instead of `step.latents`, which are at the new, lower level."""
        return step.latents

    def acts_at(self, seam: str) -> bool:
        """Whether this control overrides a seam, by its method name."""
        return getattr(type(self), seam) is not getattr(Control, seam)


@dataclass(frozen=True, eq=False)
class Region:
    """A part of the picture with an edit of its own."""

    positive: Prompt
    negative: Prompt | None = None  # by default that of the whole edit
    mask: Tensor | None = None  # [1 or F, H, W] in 0..1; None: all that no other region covers
    strength: float = 1.0  # 0..1, how far the region is edited
    controls: tuple[Control, ...] = ()  # of this region alone

    def __post_init__(self):
        if not 0 <= self.strength <= 1:
            raise ValueError(f"want a region's strength in 0..1, got {self.strength}")
        if self.mask is not None:
            object.__setattr__(self, "mask", require_mask(self.mask))


@dataclass(frozen=True)
class EditPlan:
    """What to do to a clip. Nodes append, the sampler acts."""

    controls: tuple[Control, ...] = ()
    regions: tuple[Region, ...] = ()  # none: one that is the whole picture, with the sampler's prompts

    def then(self, control: Control) -> EditPlan:
        """The plan with one control more, or with one of its controls joined with it."""
        for i, earlier in enumerate(self.controls):
            if (one := earlier.joined(control)) is not None:
                return replace(self, controls=(*self.controls[:i], one, *self.controls[i + 1 :]))
        return replace(self, controls=(*self.controls, control))

    def with_region(self, region: Region) -> EditPlan:
        return replace(self, regions=(*self.regions, region))

    def of_region(self, region: Region) -> EditPlan:
        """The plan that the rows of one region run under."""
        plan = replace(self, regions=())
        for control in region.controls:
            plan = plan.then(control)
        return plan

    def acting_at(self, seam: str) -> tuple[Control, ...]:
        """Controls that override a seam, the outermost first."""
        found = [c for c in self.controls if c.acts_at(seam)]
        order = EVALUATE_ORDER if seam == "evaluate" else ATTENTION_ORDER
        return tuple(sorted(found, key=lambda c: order.index(c.slot)) if seam in ("evaluate", "attention") else found)

    @property
    def needs(self) -> Needs:
        """What its controls want, together."""
        each = [c.needs() for c in self.controls]
        return Needs(*(any(getattr(n, name) for n in each) for name in ("source", "all_frames", "picks_frames")))

    def bytes(self, model: Model, rows: int, frames: int, size: tuple[int, int]) -> int:
        return sum(c.bytes(model, rows, frames, size) for c in self.controls)

    def fits(self, model: Model) -> None:
        """ValueError for a control that cannot run in this model, or two that cannot act together; in regions too."""
        for region in self.regions:
            self.of_region(region).fits(model)
        for control in self.controls:
            if control.needs().framewise and not model.framewise:
                raise ValueError(
                    f"{name_of(control)} evaluates single frames, and '{model.name}' looks at all frames together: "
                    "use an image or instruction model"
                )
            control.fits(model)
        for i, one in enumerate(self.controls):
            for other in self.controls[i + 1 :]:
                if reason := _conflict(one, other):
                    raise ValueError(f"{name_of(one)} and {name_of(other)} cannot act together: {reason}")

    def check(self, trajectory: Trajectory, model: Model, target: Prompt | None) -> None:
        """Refuses, before anything runs, what cannot run on this clip, model and prompt. ValueError as in `fits`."""
        self.fits(model)
        for control in self.controls:
            control.check(trajectory, model, target)


PLAIN = EditPlan()  # no controls: the plain edit


def _conflict(one: Control, other: Control) -> str | None:
    """Why two controls cannot be in one plan, and what to do; None where they can."""
    a, b = one.needs(), other.needs()
    if a.picks_frames and b.picks_frames:
        return "both evaluate some frames on their own, and each would undo the other's choice; keep one of them"
    kinds = {a.keys, b.keys} - {"own"}
    if "bank" in kinds and a.keys != "own" and b.keys != "own":
        return "one gives all frames the keys of a few, the other gives them other keys; keep one of them"
    return "each replaces the keys by bases of its own; keep one of them" if a.keys == b.keys == "bases" else None


def name_of(control: Control) -> str:
    """A control as a user knows it: `CorrespondenceAttention` -> Correspondence Attention."""
    return control.title or re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", type(control).__name__)


def require_mask(mask: Tensor) -> Tensor:
    """A mask that can be used: [1 or F, H, W] in 0..1, in memory of its own.

    Values a hair outside 0..1, as resizing leaves them, are brought back.

    Raises:
        ValueError: another shape, or other numbers.
    """
    if mask.ndim != 3 or not mask.numel():
        raise ValueError(f"want a mask [F, H, W], or [1, H, W] for all frames, got {list(mask.shape)}")
    low, high = mask.min().item(), mask.max().item()
    if not -1e-3 <= low <= high <= 1 + 1e-3:
        raise ValueError(f"the mask must hold numbers in 0..1, got {low:g} to {high:g}")
    return ordinary(mask) if low >= 0 and high <= 1 else ordinary(mask).clamp(0, 1)


def attend_with(controls: Sequence[Control], attend: Attend) -> Attend:
    """`attend` wrapped in `controls`; the first is outermost."""
    for control in reversed(controls):
        attend = partial(control.attention, attend=attend)
    return attend
