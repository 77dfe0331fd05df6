"""The parts of a clip as files, each whole or not there, so that any scheduler can run them and run one again.

gives    a safetensors file a part, with its stamp: float32 as it was edited, nothing is rounded
differs  ours
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from ..engine.tensor_file import read_tensors, write_tensors
from .chunk_stamp import merge_proven, read_stamp, stamped
from .chunks import Chunk, ChunkPlan

END = ".safetensors"


def part_name(name: str, chunk: Chunk) -> str:
    """Of the file of a part. Part 0 of 4 is "name.part_0_of_4.safetensors"."""
    return f"{name}.part_{chunk.index}_of_{chunk.plan.chunks}{END}"


def is_part(file: str, name: str) -> bool:
    """Whether a file of this name is a part of what was saved under a name."""
    return re.fullmatch(rf"{re.escape(name)}\.part_\d+_of_\d+{re.escape(END)}", file) is not None


def save_part(frames: Tensor, chunk: Chunk, folder: Path, name: str) -> tuple[Path, int]:
    """Writes a part's edited frames [F, H, W, 3] with its stamp. What was there stays until that is whole.

    Returns:
        (the file, its size in bytes).

    Raises:
        ValueError: what `stamped` refuses, or the disk is full.
    """
    path = folder / part_name(name, chunk)
    try:
        return path, write_tensors(path, {"frames": stamped(frames.float(), chunk)}, {})
    except OSError as error:
        raise ValueError(f"part {chunk.index} could not be saved: {error}") from error


def merge_files(plan: ChunkPlan, files: Iterable[Path]) -> Tensor:
    """The clip [F, H, W, 3] of the parts in files, which may come in any order.

    Raises:
        ValueError: a file that is no whole part, or parts of different sizes, by its name; what `merge_proven` refuses.
    """
    parts = {file: _frames(file) for file in files}
    if not parts:
        raise ValueError(f"there are no files of parts, and {plan.chunks} are wanted")
    size = next(iter(parts.values())).shape[1:]
    for file, frames in parts.items():
        if frames.shape[1:] != size:
            raise ValueError(f"'{file.name}' has frames {list(frames.shape[1:3])}, and the others {list(size[:2])}")
    return merge_proven(plan, torch.cat(list(parts.values())))


def _frames(file: Path) -> Tensor:
    """[F + 1, H, W, 3], the last of them the stamp."""
    frames = read_tensors(file, "part")[0].get("frames", torch.empty(0))
    if frames.ndim != 4 or frames.shape[-1] != 3 or len(frames) < 2 or read_stamp(frames[-1]) is None:
        raise ValueError(f"'{file.name}' is not a part: want a file that Save Part wrote")
    if not frames.isfinite().all():
        raise ValueError(f"'{file.name}' holds NaN or infinity: edit this part again")
    return frames
