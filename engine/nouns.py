"""The nouns of the pack: what travels along a wire, and what a method sees of a model.

All frozen: ComfyUI caches a node's output and hands the same object to many consumers. Those that hold tensors are
equal to themselves only.

One alphabet of shapes, here and everywhere: R rows (source, unconditional, negative, positive), F frames, C channels,
h w latent size, N tokens, H heads, D head size, S steps, L text tokens, E text width. Level k counts noise: 0 is clean,
S is the noisiest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from torch import Tensor

from .monitor import SILENT, Monitor
from .schedule import Schedule

if TYPE_CHECKING:
    from ..backbones.protocol import Backbone

# What a row of the batch is given: the source's latents and prompt, or the edit's latents with the negative or the
# positive prompt. "unconditional" exists for models that also see the source's picture: negative prompt, no picture.
Row = Literal["source", "unconditional", "negative", "positive"]
Half = Literal["encoder", "middle", "decoder"]
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Site:
    """One attention layer of a model, as methods see it."""

    layer: str  # the model's own name for it, stable across runs
    kind: Literal["spatial", "temporal", "cross", "joint"]
    block: str  # sites of one block belong together: STR pairs its spatial and its temporal one
    level: int  # 0 is the latent's resolution; each level halves it, rounding up
    order: int  # position in the forward pass
    half: Half = "decoder"  # of a UNet
    place: tuple[int, int] | None = None  # in a decoder: (which of its stages with attention, which layer there)


@dataclass(frozen=True)
class Block:
    """A place in a model's decoder whose features can be read and replaced."""

    name: str
    kind: Literal["stage", "residual"]  # the output of a stage, or what a residual block adds to its input
    stage: int  # which stage of the decoder, 0 the coarsest
    level: int  # resolution of the features, as in `Site`
    place: tuple[int, int] | None = None  # of a residual block: that of the attention after it, if there is one


@dataclass(frozen=True, eq=False)
class Prompt:
    """A text as the model reads it."""

    embedding: Tensor  # [1, L, E], or [F, L, E] for a text per frame
    text: str
    model: str  # fingerprint of the model that encoded it
    tokens: tuple[str, ...] = ()  # [L] the text at each position, a space after a word's end; "" where there is none

    def select(self, positions: Sequence[int]) -> Prompt:
        """The prompt for some frames of the clip."""
        if len(self.embedding) == 1:
            return self
        return replace(self, embedding=self.embedding[list(positions)])


@dataclass(frozen=True, eq=False)
class Evaluation:
    """One evaluation of the network: a batch of whole clips at one timestep."""

    latents: Tensor  # [R, F, C, h, w]
    timestep: int
    prompts: tuple[Prompt, ...]  # one a row
    rows: tuple[Row, ...]
    step: int = 0  # 0 is the first, noisiest step of the run
    steps: int = 1  # of the run
    image: Tensor | None = None  # [F, C, h, w] clean latents of the source, for models that are given its picture
    frames: tuple[int, ...] = ()  # where in the clip these frames are; empty: all, in order
    whole: bool = False  # these frames must be evaluated together, however few a chunk may have
    shared: Mapping[Any, Any] = field(default_factory=dict)  # what a control made in `evaluate` for its own `attention`
    monitor: Monitor = SILENT

    def select(self, positions: Sequence[int]) -> Evaluation:
        """The same for some of these frames, by their positions in it."""
        at = list(positions)
        frames = self.frames or tuple(range(self.latents.shape[1]))
        return replace(
            self,
            latents=self.latents[:, at],
            prompts=tuple(prompt.select(at) for prompt in self.prompts),
            image=None if self.image is None else self.image[at],
            frames=tuple(frames[i] for i in at),
        )

    def share(self, owner: Any, value: Any) -> Evaluation:
        """The same with `value` under `shared[owner]`."""
        return replace(self, shared={**self.shared, owner: value})


@dataclass(frozen=True, eq=False)
class AttentionCall:
    """One call of one attention layer. At every call q is [R, G, H, M, D]: G groups that attend among themselves
    (the frames of spatial and cross attention, the pixels of temporal attention) of M tokens each."""

    site: Site
    evaluation: Evaluation
    grid: tuple[int, int, int]  # (F, h, w) of the image tokens at this site
    scale: float  # of the logits
    tokens: Tensor  # [R, G, M, C] what q is projected from, normalised as the layer takes it
    project: Callable[[Tensor], tuple[Tensor, Tensor]]  # tokens [R, G, M, C] -> k, v [R, G, H, M, D] by its weights

    def row(self, name: Row) -> int:
        """Where a row is in the batch. Raises ValueError if this evaluation does not have it."""
        if name not in self.evaluation.rows:
            raise ValueError(f"no {name} row at {self.site.layer}: this evaluation has {self.evaluation.rows}")
        return self.evaluation.rows.index(name)


@dataclass(frozen=True, eq=False)
class Step:
    """Where the sampler is when it asks a control to act before or after a step."""

    latents: Tensor  # [F, C, h, w] of the edit, at `level`
    level: int  # the noise level `latents` is at
    index: int  # 0 is the first, noisiest step
    steps: int
    trajectory: Trajectory
    positive: Prompt
    negative: Prompt
    backbone: Backbone
    monitor: Monitor
    seed: int

    @property
    def progress(self) -> float:
        """Share of the run that lies behind this step, 0 at the first."""
        return self.index / self.steps

    def source_latents(self, level: int | None = None) -> Tensor:
        """[F, C, h, w] of the source at a noise level, by default that of `latents`, on their device."""
        return self.trajectory.latents[self.level if level is None else level].to(self.latents)


@dataclass(frozen=True, eq=False)
class Control:
    """One change to a run. A method subclasses this and overrides only the seams it acts at; these do nothing."""

    needs_source: ClassVar[bool] = False  # run the source as one more row beside the edit
    rows_worth: ClassVar[int] = 0  # memory of its own passes, in rows evaluated without gradients
    needs_all_frames: ClassVar[bool] = False  # its attention or features look across the clip: no chunks of frames

    def attention(self, call: AttentionCall, q: Tensor, k: Tensor, v: Tensor, attend: Attend) -> Tensor:
        """Rewrite one attention call; `attend(q, k, v)` is the unmodified one."""
        return attend(q, k, v)

    def feature(self, block: Block, x: Tensor, evaluation: Evaluation) -> Tensor:
        """Read or replace the features x [R, F, C, h, w] of a block."""
        return x

    def evaluate(self, evaluation: Evaluation, evaluate: Callable[[Evaluation], Tensor]) -> Tensor:
        """Wrap the network evaluation of a step; returns its output [R, F, C, h, w]."""
        return evaluate(evaluation)

    def before_step(self, step: Step) -> Tensor:
        """Latents to evaluate instead of `step.latents`."""
        return step.latents

    def after_step(self, step: Step) -> Tensor:
        """Latents to go on with instead of `step.latents`, which are at the new, lower level."""
        return step.latents

    def check(self, trajectory: Trajectory, backbone: Backbone) -> None:
        """Raise a ValueError now, before anything runs, if this control cannot act on this clip and model."""

    def acts_at(self, seam: str) -> bool:
        """Whether this control overrides a seam, by its method name."""
        return getattr(type(self), seam) is not getattr(Control, seam)


@dataclass(frozen=True)
class EditPlan:
    """What to do to a clip, in nesting order: the first control is outermost. Nodes append, the sampler acts."""

    controls: tuple[Control, ...] = ()

    def then(self, control: Control) -> EditPlan:
        return replace(self, controls=(*self.controls, control))

    def acting_at(self, seam: str) -> tuple[Control, ...]:
        return tuple(c for c in self.controls if c.acts_at(seam))


PLAIN = EditPlan()  # no controls: the plain DDIM edit


@dataclass(frozen=True, eq=False)
class Trajectory:
    """The source clip at every noise level, and what it was made with."""

    latents: Tensor  # [S+1, F, C, h, w] as the network sees them, level 0 (clean) first, float32, on the CPU
    schedule: Schedule
    prompt: Prompt
    convention: str  # how it was inverted

    def __post_init__(self):
        if self.latents.ndim != 5 or len(self.latents) != self.schedule.steps + 1:
            raise ValueError(
                f"a trajectory of {self.schedule.steps} steps wants latents [{self.schedule.steps + 1}, F, C, h, w], "
                f"got {list(self.latents.shape)}"
            )

    @property
    def frames(self) -> int:
        return self.latents.shape[1]

    @property
    def noise_std(self) -> float:
        """Standard deviation of the noisiest latents; about 1 if the inversion behaved."""
        return self.latents[-1].std().item()

    def thinned(self, steps: int) -> Trajectory:
        """Every so many levels of it, for an edit in fewer steps than the inversion took.

        Raises:
            ValueError: `steps` does not divide those of the trajectory.
        """
        schedule = self.schedule.thinned(steps)
        return replace(self, latents=self.latents[:: self.schedule.steps // steps].clone(), schedule=schedule)

    def require(self, backbone: Backbone, *prompts: Prompt) -> None:
        """Refuses a model or prompts that do not belong to this trajectory.

        Raises:
            ValueError: the model is not the one the clip was inverted with, or a prompt was encoded by another.
        """
        if backbone.fingerprint != self.prompt.model:
            raise ValueError(
                f"this trajectory was inverted with another model than '{backbone.name}' "
                f"(fingerprint {self.prompt.model}, got {backbone.fingerprint}): invert the clip with this model, "
                "or connect the model that was used"
            )
        for prompt in prompts:
            if prompt.model != self.prompt.model:
                raise ValueError(
                    f"the prompt '{prompt.text}' was encoded by another model than the trajectory's: "
                    "encode it with the same model"
                )
            if len(prompt.embedding) not in (1, self.frames):
                raise ValueError(
                    f"the prompt '{prompt.text}' has embeddings for {len(prompt.embedding)} frames and the "
                    f"trajectory has {self.frames}: give one embedding, or one per frame"
                )
