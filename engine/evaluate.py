"""The network's output under a plan: controls around it, frames in chunks within it, fewer when memory ends."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from .call import Evaluation
from .plan import EditPlan, name_of
from .ports import Denoiser, Predict
from .words import Model

log = logging.getLogger(__name__)


@dataclass
class Chunks:
    """How many frames the network takes at a time. It shrinks, and stays small, when memory runs out."""

    size: int
    may_shrink: bool

    @classmethod
    def asked(cls, model: Model, frames: int, chunk_frames: int, plan: EditPlan) -> Chunks:
        """As somebody asked for; 0: all, until `fit`.

        Raises:
            ValueError: a negative number, or chunks where frames see each other.
        """
        if chunk_frames < 0:
            raise ValueError(f"want 0 (as many frames as fit) or more frames a chunk, got {chunk_frames}")
        crossing = [name_of(c) for c in plan.controls if c.needs().all_frames]
        if 0 < chunk_frames < frames:
            if not model.framewise:
                raise ValueError(
                    f"'{model.name}' looks at all frames together and cannot run in chunks of {chunk_frames}: set "
                    "chunk_frames to 0, or use an image model"
                )
            if crossing:
                raise ValueError(
                    f"{', '.join(crossing)} looks at all {frames} frames together and cannot run in chunks of "
                    f"{chunk_frames}: set chunk_frames to 0, or shorten the clip"
                )
        return cls(min(chunk_frames or frames, frames), model.framewise and not crossing)

    def fit(self, denoiser: Denoiser, rows: int, size: tuple[int, int]) -> None:
        """No more frames at a time than free memory holds, by the model's own reckoning."""
        free = denoiser.free() if self.may_shrink else None
        while free is not None and self.size > 1 and denoiser.bytes(rows, self.size, size) > free:
            self.size = -(-self.size // 2)

    def halve(self, frames: int, error: torch.OutOfMemoryError) -> None:
        """After `frames` were too many. Raises the error where nothing smaller can be evaluated."""
        if not self.may_shrink or frames <= 1:
            raise error
        self.size = -(-frames // 2)
        log.warning("out of memory with %d frames at a time: going on with %d", frames, self.size)


def evaluate_with(predict: Predict, evaluation: Evaluation, plan: EditPlan, chunks: Chunks | None = None) -> Tensor:
    """The network's output [R, F, C, h, w], float32, under a plan's attention, feature and evaluation controls.

    Evaluation controls see all frames; what they evaluate runs in chunks, unless it is `whole`.
    """

    def network(e: Evaluation) -> Tensor:
        if e.whole or chunks is None:
            e.run.monitor.check()
            return predict(e, plan)
        return _in_chunks(partial(predict, plan=plan), e, chunks)

    for control in reversed(plan.acting_at("evaluate")):
        network = partial(control.evaluate, evaluate=network)
    return network(evaluation)


def _in_chunks(predict: Callable[[Evaluation], Tensor], evaluation: Evaluation, chunks: Chunks) -> Tensor:
    frames, outputs, first = evaluation.latents.shape[1], [], 0
    while first < frames:
        evaluation.run.monitor.check()
        last = min(first + chunks.size, frames)
        some = evaluation if last - first == frames else evaluation.select(range(first, last))
        try:
            outputs.append(predict(some))
        except torch.OutOfMemoryError as error:
            chunks.halve(last - first, error)
            continue
        first = last
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, 1)
