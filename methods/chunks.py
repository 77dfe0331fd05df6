"""A long clip cut for several workers that edit it with gather-swap attention, and put together again.

paper    VIA, Gu et al. 2024 (arXiv 2406.12831), appendix B: "each frame can be edited on separate GPUs"
needs    the same model, prompts, seed and numbers at every worker
gives    for each worker the frames to edit: its own and those of the group
differs  workers exchange nothing: each gathers the group's keys and values itself, which costs group/own more frames

Frames are edited one by one but for what they take from the group, so a worker that holds the group and its own frames
gives its own the very edit that one run over the whole clip gives them. The group's frames come out of every worker
alike; `merge` takes each frame from the worker that owns it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .gather_swap import spread

AGREE = (
    2 / 255
)  # mean difference of a frame that two workers edited; 8-bit transport makes 0.5, a wrong part 5 and more


@dataclass(frozen=True)
class Chunk:
    """The frames that one worker edits, by their numbers in the whole clip."""

    index: int
    frames: tuple[int, ...]  # in order, its own and the group's
    own: tuple[int, ...]
    group: tuple[int, ...]  # where in `frames` the group's are
    plan: ChunkPlan  # that it is a part of

    @property
    def kept(self) -> list[int]:
        """Where in `frames` its own are."""
        return [self.frames.index(f) for f in self.own]


@dataclass(frozen=True)
class ChunkPlan:
    """How a clip of `frames` frames is cut."""

    frames: int
    chunks: int
    group: tuple[int, ...]  # frames of the clip

    def chunk(self, index: int) -> Chunk:
        """The index-th chunk, from 0. ValueError if there is none."""
        if not 0 <= index < self.chunks:
            raise ValueError(f"there are chunks 0 to {self.chunks - 1}, and no {index}")
        base, longer = divmod(self.frames, self.chunks)
        start = index * base + min(index, longer)
        own = tuple(range(start, start + base + (index < longer)))
        frames = tuple(sorted({*own, *self.group}))
        return Chunk(index, frames, own, tuple(frames.index(g) for g in self.group), self)

    def require(self, frames: Tensor, what: str) -> None:
        """Refuses frames [F, ...] that are not the whole clip's."""
        if len(frames) != self.frames:
            raise ValueError(
                f"the chunks were planned for {self.frames} frames and the {what} has {len(frames)}: "
                "connect the clip that was planned"
            )


def plan_chunks(frames: int, chunks: int, *, group: int | tuple[int, ...] = 4) -> ChunkPlan:
    """Cuts a clip into chunks of equal length, give or take a frame.

    Args:
        group: how many frames, evenly spaced over the clip, every worker gathers from; or which.

    Raises:
        ValueError: more chunks or a larger group than there are frames.
    """
    if not 1 <= chunks <= frames:
        raise ValueError(f"want 1 to {frames} chunks, one frame each at least, got {chunks}")
    members = spread(frames, group) if isinstance(group, int) else tuple(group)
    if outside := [g for g in members if not 0 <= g < frames]:
        raise ValueError(f"the group wants frames {outside}, and the clip has frames 0 to {frames - 1}")
    return ChunkPlan(frames, chunks, members)


def select(plan: ChunkPlan, index: int, frames: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor, Chunk]:
    """What worker `index` edits.

    Args:
        frames: [F, H, W, 3], the whole clip.
        mask: [F or 1, H, W]; by default all of the picture may change.

    Returns:
        (its frames, their masks, the chunk).

    Raises:
        ValueError: no such chunk, or frames or masks of another number than planned.
    """
    chunk = plan.chunk(index)
    plan.require(frames, "clip")
    if mask is None:
        mask = torch.ones(1, *frames.shape[1:3])
    if len(mask) > 1:
        plan.require(mask, "mask")
    at = list(chunk.frames)
    return frames[at], mask[at] if len(mask) > 1 else mask, chunk


def merge(plan: ChunkPlan, frames: Tensor, order: Sequence[int] | None = None) -> Tensor:
    """The clip [F, H, W, 3], from the edited chunks end to end.

    Args:
        frames: all frames of every chunk, those of the group included, chunk after chunk.
        order: which chunk comes when; by default 0, 1, 2, ...

    Raises:
        ValueError: a chunk is missing or comes twice, the frames are not those of all chunks, or a chunk's frames of
            the group are not the others'.
    """
    order = range(plan.chunks) if order is None else order
    if sorted(order) != list(range(plan.chunks)):
        raise ValueError(f"want every chunk once, 0 to {plan.chunks - 1} in any order, got {list(order)}")
    sizes = [len(plan.chunk(i).frames) for i in order]
    if sum(sizes) != len(frames):
        raise ValueError(
            f"the {plan.chunks} chunks have {sum(sizes)} frames with those of the group, and {len(frames)} came: "
            "connect all that every worker edited, one worker after another"
        )
    return merge_parts(plan, dict(zip(order, frames.split(sizes))))


def merge_parts(plan: ChunkPlan, parts: Mapping[int, Tensor]) -> Tensor:
    """The clip, from each chunk's edited frames by its index.

    Every worker edits the group's frames, and alike: so a chunk that is not what it is said to be shows there.

    Raises:
        ValueError: a chunk's frames of the group are not those of the chunk that owns them.
    """
    clip = parts[0].new_empty(plan.frames, *parts[0].shape[1:])
    for index, part in parts.items():
        chunk = plan.chunk(index)
        clip[list(chunk.own)] = part[chunk.kept]
    for index, part in parts.items():
        at = list(plan.chunk(index).group)
        apart = (part[at] - clip[list(plan.group)]).abs().flatten(1).mean(1).max().item()
        if apart > AGREE:
            raise ValueError(
                f"chunk {index} is not what the others are parts of: its frames of the group differ by "
                f"{255 * apart:.1f} of 255. Chunks were swapped or doubled, or a worker has another model, text or seed"
            )
    return clip


def read_order(text: str) -> list[int] | None:
    """ "2 0 1" or "2, 0, 1" -> [2, 0, 1]; nothing -> None. ValueError for anything else."""
    try:
        return [int(number) for number in text.replace(",", " ").split()] or None
    except ValueError:
        raise ValueError(f"want the numbers of the chunks, as in '2 0 1', got '{text}'") from None
