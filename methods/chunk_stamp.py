"""The proof of a part: one frame more, whose pixels say which part of which plan it is.

gives    a part that can be told from any other, whatever carried it: it survives 8-bit pictures, not a video's codec
differs  ours

A frame of zeros and ones: from the top left, in each color of each pixel, a bit of the stamp. Its checksum tells it
from a picture that happens to be black and white.
"""

from __future__ import annotations

import logging
import struct
import zlib
from dataclasses import dataclass

import torch
from torch import Tensor

from ..engine.digest import digest
from .chunks import Chunk, ChunkPlan, merge, merge_parts

log = logging.getLogger(__name__)
LAYOUT = struct.Struct(">4sHH8s")  # a mark, index, count, digest of the plan; a checksum of 4 bytes after it
MARK = b"Weft"
BITS = 8 * (LAYOUT.size + 4)


@dataclass(frozen=True)
class Stamp:
    """Which part of which plan."""

    index: int
    count: int
    plan: bytes


def stamped(frames: Tensor, chunk: Chunk) -> Tensor:
    """A part's edited frames [F, H, W, 3] with its stamp after them, [F + 1, H, W, 3].

    Raises:
        ValueError: other frames than the part's, or such that are too small to hold a stamp.
    """
    if len(frames) != len(chunk.frames):
        raise ValueError(f"part {chunk.index} has {len(chunk.frames)} frames, and {len(frames)} are connected")
    if frames[0].numel() < BITS:
        raise ValueError(f"want frames of at least {-(-BITS // 3)} pixels for a stamp, got {list(frames.shape[1:3])}")
    packed = LAYOUT.pack(MARK, chunk.index, chunk.plan.chunks, _digest(chunk.plan))
    packed += zlib.crc32(packed).to_bytes(4, "big")
    bits = [byte >> place & 1 for byte in packed for place in range(7, -1, -1)]
    frame = torch.zeros_like(frames[0])
    frame.view(-1)[:BITS] = torch.tensor(bits).to(frame)
    return torch.cat([frames, frame[None]])


def read_stamp(frame: Tensor) -> Stamp | None:
    """What a frame [H, W, 3] says, if it is a stamp."""
    bits = frame.reshape(-1)[:BITS].gt(0.5).int().tolist()
    packed = bytes(sum(bit << 7 - place for place, bit in enumerate(bits[i : i + 8])) for i in range(0, len(bits), 8))
    if not packed.startswith(MARK) or zlib.crc32(packed[:-4]).to_bytes(4, "big") != packed[-4:]:
        return None
    _, index, count, plan = LAYOUT.unpack(packed[:-4])
    return Stamp(index, count, plan)


def merge_proven(plan: ChunkPlan, frames: Tensor, order: list[int] | None = None) -> Tensor:
    """As `merge`, by the stamps of the parts where they have any: then they may come in any order.

    Raises:
        ValueError: a part that is missing, came twice, is of another plan or not whole, by its number; without stamps,
            what `merge` refuses.
    """
    stamps = {at: stamp for at, frame in enumerate(frames) if (stamp := read_stamp(frame))}
    if not stamps:
        if plan.chunks > 1:
            log.warning("the parts have no stamps: swapped ones may go unseen. Connect Chunk Stamp at every worker")
        return merge(plan, frames, order)
    parts: dict[int, Tensor] = {}
    for start, (at, stamp) in zip((0, *(at + 1 for at in stamps)), stamps.items()):
        if stamp.plan != _digest(plan):
            raise ValueError(
                f"part {stamp.index} of {stamp.count} was cut by another plan: count, group_size and clip must be the "
                "same at every worker"
            )
        if stamp.index in parts:
            raise ValueError(
                f"part {stamp.index} came twice: two workers were given the same index; a Distributed Seed of 0, "
                "fixed, gives each its own"
            )
        if at - start != (want := len(plan.chunk(stamp.index).frames)):
            raise ValueError(f"part {stamp.index} has {want} frames, and {at - start} of them came")
        parts[stamp.index] = frames[start:at]
    if (rest := len(frames) - 1 - max(stamps)) > 0:
        raise ValueError(f"the last {rest} frames have no stamp: connect Chunk Stamp at every worker")
    if missing := [str(i) for i in range(plan.chunks) if i not in parts]:
        raise ValueError(
            f"no part {', '.join(missing)} of {plan.chunks} (the master's is 0, the first worker's 1): that worker "
            "failed or was not there; its own log says why"
        )
    if order is not None and order != list(parts):
        raise ValueError(f"order says {order}, and the parts' own stamps say {list(parts)}: leave order empty")
    return merge_parts(plan, parts)


def _digest(plan: ChunkPlan) -> bytes:
    return bytes.fromhex(digest(plan))
