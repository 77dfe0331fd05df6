"""From the source to the edited clip: the one loop of an edit, and where controls act in it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor

from .autograd import plain_torch
from .beside import rejoined
from .call import Call, Evaluation, Run
from .check import check_edit
from .evaluate import Chunks, evaluate_with
from .monitor import SILENT, Monitor
from .plan import PLAIN, EditPlan, Step, name_of
from .ports import Backbone, Denoiser, Predict
from .probe import read_calls
from .regions import Inputs, Part, Parts
from .solver import DDIM, Seen, Solver
from .source import Trajectory
from .words import POSITIVE, SOURCE, SOURCE_NEGATIVE, Prompt, Row

log = logging.getLogger(__name__)


@plain_torch
def edit(
    backbone: Backbone,
    trajectory: Trajectory,
    positive: Prompt,
    *,
    negative: Prompt | None = None,
    plan: EditPlan = PLAIN,
    solver: Solver = DDIM(),  # noqa: B008  it is frozen
    guidance: float = 7.5,
    image_guidance: float = 1.5,
    chunk_frames: int = 0,
    seed: int = 0,
    monitor: Monitor = SILENT,
) -> Tensor:
    """Makes the edited clip, with the steps and schedule of the source's trajectory.

    Args:
        positive: what the edited clip shows; where the plan has regions, each has its own.
        negative: what guidance moves away from; by default the source's own prompt (STR-Match, Algorithm 1).
        plan: the controls and regions. An empty plan is the plain edit.
        solver: how a step moves the latent.
        guidance: classifier-free guidance scale w, negative + w (positive - negative); 1 skips the negative.
        image_guidance: the same towards the source's picture, for models that are given it (InstructPix2Pix, Brooks
            et al. 2023, equation 3); others ignore it.
        chunk_frames: evaluate this many frames at a time, for models whose frames do not see each other; 0: as many as
            fit.
        seed: of the random numbers a control or solver may draw; DDIM itself draws none.
        monitor: progress and cancel.

    Returns:
        Latents as `backbone.codec.decode` takes them.

    Raises:
        ValueError: model, prompts, a control or a region do not fit the trajectory or each other, or the latents
            become NaN.
    """
    scales = {"guidance": guidance, "image_guidance": image_guidance}
    parts = check_edit(backbone, trajectory, positive, negative=negative, plan=plan, solver=solver, **scales)
    denoiser, (frames, _, *size) = backbone.denoiser, trajectory.shape
    negative = trajectory.prompt if negative is None else negative
    chunks = [Chunks.asked(denoiser, frames, chunk_frames, group[0].plan) for group in parts.groups]
    run = _Edit(denoiser, trajectory, negative, solver, parts, chunks, seed, monitor)
    rows = max(len(run.rows(group, trajectory.at(0), trajectory, 1)) for group in parts.groups)
    reserve = denoiser.bytes(rows, max(c.size for c in chunks), tuple(size))
    reserve += sum(group[0].plan.bytes(denoiser, rows, frames, tuple(size)) for group in parts.groups)

    def body(predict: Predict) -> Tensor:
        run.recompute = _is_tight(denoiser, frames, tuple(size))
        for some in chunks:
            some.fit(denoiser, rows, tuple(size))
        return run.steps(predict)

    prompts = list(dict.fromkeys((trajectory.prompt, negative, *parts.prompts)))
    clean, beside = trajectory.at(0), trajectory.beside
    z = denoiser.session(prompts, clean, trajectory.schedule, body, reserve=reserve, beside=beside)
    return rejoined(backbone, backbone.codec.unscale(z), beside)


@dataclass(eq=False)
class _Edit:
    """One edit: what stays the same from step to step."""

    denoiser: Denoiser
    trajectory: Trajectory
    negative: Prompt
    solver: Solver
    parts: Parts
    chunks: list[Chunks]  # one a group of regions
    seed: int
    monitor: Monitor
    kept: dict = field(default_factory=dict)
    recompute: bool = False  # in passes with gradients: if they would not fit, or once memory has run out in one

    def steps(self, predict: Predict) -> Tensor:
        """[F, C, h, w] of the edit after all steps."""
        device, solver = self.denoiser.device, self.solver
        cover = None if self.parts.cover is None else self.parts.cover.to(device)
        self.clean = self.trajectory.at(0).to(device) if self.denoiser.sees_source else None
        levels = solver.levels(self.trajectory.schedule)
        z = solver.begin(self.trajectory).to(device, torch.float32)
        for index, level in enumerate(levels):
            self.index, self.count, seen = index, len(levels), []
            for draw in range(solver.draws):
                source, latents = solver.look(z, self.trajectory, level, draw, self.seed)
                latents = self._acted("before_step", predict, latents, source, level)
                self.monitor.check()
                seen.append(Seen(source, latents, *self._guided(predict, latents, source, level)))
            z = solver.advance(z, self.trajectory, level, seen, cover)
            z = self._acted("after_step", predict, z, self.trajectory, solver.after(level))
            if not torch.isfinite(z).all():
                raise ValueError(
                    f"the edit became NaN or infinite at step {index + 1} of {len(levels)}: lower the strength or the "
                    "guidance scale, or load the model in float32"
                )
            clean, _ = seen[-1].source.schedule.split(seen[-1].latents, seen[-1].guided, level)
            self.monitor.progress(index + 1, len(levels), clean)
        return z

    # ---- controls around a step -------------------------------------------------------------------------------------

    def _acted(self, seam: str, predict: Predict, latents: Tensor, source: Trajectory, level: int) -> Tensor:
        """The latents after the controls of every region, each where the region is; where regions overlap, their mean.

        A control of the whole plan is told each region's prompt in turn.
        """
        moved = [self._chained(seam, predict, part, latents, source, level) for part in self.parts]
        if all(m is latents for m in moved) or self.parts.total is None:
            return moved[0]
        here = [(part.weight > 0).to(latents) for part in self.parts]
        count = sum(here)
        mean = sum(h * m for h, m in zip(here, moved)) / count.clamp(min=1)
        return torch.where(count > 0, mean, latents)

    def _chained(
        self, seam: str, predict: Predict, part: Part, latents: Tensor, source: Trajectory, level: int
    ) -> Tensor:
        """The latents after one region's controls, one after the other."""
        for control in part.plan.acting_at(seam):
            step = self._step(predict, part, latents, source, level)
            try:
                latents = getattr(control, seam)(step)
            except torch.OutOfMemoryError:
                if self.recompute:
                    raise
                log.warning(
                    "out of memory in %s: blocks are evaluated twice from here on, and not kept", name_of(control)
                )
                self.recompute = True
                latents = getattr(control, seam)(step)
        return latents

    def _step(self, predict: Predict, part: Part, latents: Tensor, source: Trajectory, level: int) -> Step:
        def read(edited: Tensor | None, of_source: Tensor, layers: frozenset[str]) -> Mapping[str, Call]:
            rows: Inputs = {}
            if edited is None or part.plan.needs.source:
                rows[SOURCE] = of_source, self.trajectory.prompt
            if edited is not None:
                rows[POSITIVE] = edited, part.positive
            evaluation = replace(self._evaluation(rows, level, part), recompute=self.recompute)
            wanted = SOURCE if edited is None else POSITIVE
            return read_calls(partial(evaluate_with, predict), evaluation, part.plan, wanted, layers)

        return Step(
            latents,
            level,
            self.index,
            self.count,
            source,
            part.positive,
            self.denoiser,
            self.monitor,
            self.seed,
            self._kept(part),
            read,
        )

    # ---- one evaluation ---------------------------------------------------------------------------------------------

    def rows(self, group: tuple[Part, ...], latents: Tensor, source: Trajectory, level: int) -> Inputs:
        """What is evaluated for some regions: the source, if it is wanted, and what guidance needs."""
        rows: Inputs = {}
        guidance = self.solver.source_guidance
        if guidance is not None or group[0].plan.needs.source:
            at = source.at(level).to(latents)
            rows[SOURCE] = at, self.trajectory.prompt
            if guidance not in (None, 1):
                rows[SOURCE_NEGATIVE] = at, self.negative
        return rows | self.parts.rows(group, latents)

    def _guided(
        self, predict: Predict, latents: Tensor, source: Trajectory, level: int
    ) -> tuple[Tensor, Tensor | None]:
        """The network's output for the edit and, if it is wanted, for the source, after guidance: [F, C, h, w]."""
        total, of_source = None, None
        for group, chunks in zip(self.parts.groups, self.chunks):
            rows = self.rows(group, latents, source, level)
            evaluation = self._evaluation(rows, level, group[0])
            output: dict[Row, Tensor] = dict(zip(rows, evaluate_with(predict, evaluation, group[0].plan, chunks)))
            guided = self.parts.guided(group, rows, output)
            total = guided if total is None else total + guided
            of_source = self._source_output(output) if of_source is None else of_source
        return total, of_source

    def _source_output(self, output: Mapping[Row, Tensor]) -> Tensor | None:
        guidance = self.solver.source_guidance
        if guidance is None or SOURCE_NEGATIVE not in output:
            return None if guidance is None else output[SOURCE]
        return output[SOURCE_NEGATIVE] + guidance * (output[SOURCE] - output[SOURCE_NEGATIVE])

    def _evaluation(self, rows: Inputs, level: int, part: Part) -> Evaluation:
        return Evaluation(
            _stacked([z for z, _ in rows.values()]),
            self.trajectory.schedule.label(level),
            tuple(prompt for _, prompt in rows.values()),
            tuple(rows),
            image=self.clean,
            run=Run(self.index, self.count, self.monitor, kept=self._kept(part)),
        )

    def _kept(self, part: Part) -> dict:
        return self.kept.setdefault(tuple(map(id, part.plan.controls)), {})


def _is_tight(denoiser: Denoiser, frames: int, size: tuple[int, int]) -> bool:
    """Whether a pass with gradients is too large for all the memory there is, by the model's own reckoning."""
    free = denoiser.free()
    return free is not None and denoiser.bytes(1, frames, size, grad=True) > free


def _stacked(rows: list[Tensor]) -> Tensor:
    """[R, F, C, h, w]; where all rows are the edit's own latents they stay one tensor, as a long clip's are many."""
    if all(row is rows[0] for row in rows):
        return rows[0].expand(len(rows), *rows[0].shape)
    return torch.stack(rows)
