"""Points, boxes and frame numbers as people write them, and as JSON.

32,20; 40,22        two places; a new line is as good as a semicolon
5: 30,18            at frame 5; holds for the rest of the line
10,8,44,40          a box: left, top, right, bottom
[{"x": 32, "y": 20}]    as point editors give them, with "frame": 5 where it is not the usual one
[[10, 8, 44, 40]]       boxes, or [{"box": [10, 8, 44, 40], "frame": 5}]
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable

from torch import Tensor

from .ports import Box, Point, Prompts

NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)"
Asked = dict[int, tuple[Prompts, ...]]  # frame -> what is asked there, one entry a thing


def read_prompts(positive: str = "", negative: str = "", boxes: str = "", frame: int = 0) -> Asked:
    """What these texts ask for.

    Every box is a thing of its own. A positive point belongs to the boxes it is in; those in no box are one more thing.
    Negative points belong to every thing of their frame.

    Args:
        frame: where those stand that do not say so.

    Raises:
        ValueError: a text that cannot be read, no prompt at all, or negative points with nothing to take away from.
    """
    on, off = (_read(text, 2, frame, name) for text, name in ((positive, "positive"), (negative, "negative")))
    around = _read(boxes, 4, frame, "boxes")
    if not on and not around:
        what = "negative points alone do not say what is wanted" if off else "no point and no box"
        raise ValueError(f"{what}: give at least one positive point, as 'x,y', or one box, as 'left,top,right,bottom'")
    if stray := sorted(set(off) - set(on) - set(around)):
        raise ValueError(f"negative points at frame {stray[0]}, where there is no positive point and no box")
    asked = {}
    for k in sorted(set(on) | set(around)):
        points, not_points = tuple(on.get(k, ())), tuple(off.get(k, ()))
        things = [Prompts(tuple(p for p in points if _inside(p, box)), not_points, box) for box in around.get(k, ())]
        if free := tuple(p for p in points if not any(_inside(p, box) for box in around.get(k, ()))):
            things.append(Prompts(free, not_points))
        asked[k] = tuple(things)
    return asked


def check_prompts(asked: Asked, frames: Tensor) -> None:
    """Raises ValueError for a frame, a point or a box that is not in the clip [F, H, W, 3]."""
    count, height, width = frames.shape[:3]
    for k, things in asked.items():
        _check_frame(k, count)
        for prompts in things:
            for x, y in (*prompts.points, *prompts.not_points):
                if not (0 <= x < width and 0 <= y < height):
                    raise ValueError(
                        f"the point {x:g},{y:g} at frame {k} is outside the picture, which is {width}x{height}: "
                        f"want x in 0..{width - 1} and y in 0..{height - 1}"
                    )
            if prompts.box is not None:
                left, top, right, bottom = prompts.box
                if not (0 <= left < right <= width and 0 <= top < bottom <= height):
                    raise ValueError(
                        f"the box {','.join(f'{v:g}' for v in prompts.box)} at frame {k} is not inside the picture, "
                        f"which is {width}x{height}: want left,top,right,bottom with left < right and top < bottom"
                    )


def read_frames(text: str, count: int) -> tuple[int, ...]:
    """Frame numbers "0, 5", or "all", in order.

    Raises:
        ValueError: something else, or a frame that the clip of `count` frames does not have.
    """
    if text.strip().lower() == "all":
        return tuple(range(count))
    parts = [part for part in re.split(r"[\s,;]+", text) if part]
    if not parts or not all(part.isdigit() for part in parts):
        raise ValueError(f"cannot read the frames '{text}': want numbers from 0 on, as '0' or '0, 8', or 'all'")
    found = tuple(sorted({int(part) for part in parts}))
    for k in found:
        _check_frame(k, count)
    return found


def write_frames(frames: Iterable[int]) -> str:
    """What `read_frames` reads."""
    return ", ".join(str(k) for k in frames)


def write_boxes(boxes: dict[int, Iterable[Box]]) -> str:
    """What `read_prompts` reads: a line a frame."""
    lines = (f"{k}: " + "; ".join(",".join(f"{v:.1f}" for v in box) for box in at) for k, at in boxes.items())
    return "\n".join(lines)


def _check_frame(k: int, count: int) -> None:
    if not 0 <= k < count:
        raise ValueError(f"there is no frame {k}: the clip has {count}, numbered 0 to {count - 1}")


def _inside(point: Point, box: Box) -> bool:
    return box[0] <= point[0] <= box[2] and box[1] <= point[1] <= box[3]


def _read(text: str, size: int, frame: int, name: str) -> dict[int, list[tuple[float, ...]]]:
    """Groups of `size` numbers, by frame."""
    if text.strip().startswith("["):
        return _read_json(text, size, frame, name)
    found: dict[int, list] = {}
    for line in text.splitlines():
        at = frame
        for item in filter(None, (part.strip() for part in line.split(";"))):
            prefix, colon, rest = item.rpartition(":")
            numbers = re.split(r"\s*,\s*|\s+", rest.strip())
            if (colon and not prefix.strip().isdigit()) or len(numbers) != size or not _are_numbers(numbers):
                raise ValueError(f"cannot read '{item}' of {name}: want {_WANTED[size]}")
            at = int(prefix) if colon else at
            found.setdefault(at, []).append(tuple(float(n) for n in numbers))
    return found


_WANTED = {
    2: "'x,y' in pixels, several separated by ';', after a frame number if need be, as '5: 30,18; 32,20'",
    4: "'left,top,right,bottom' in pixels, several separated by ';', after a frame number if need be, as "
    "'5: 10,8,44,40'",
}


def _are_numbers(parts: Iterable[str]) -> bool:
    return all(re.fullmatch(NUMBER, part) for part in parts)


def _read_json(text: str, size: int, frame: int, name: str) -> dict[int, list[tuple[float, ...]]]:
    found: dict[int, list] = {}
    try:
        for entry in json.loads(text):
            at, numbers = frame, entry
            if isinstance(entry, dict):
                at = int(entry.get("frame", frame))
                numbers = entry["box"] if size == 4 else (entry["x"], entry["y"])
            found.setdefault(at, []).append(tuple(float(v) for v in numbers))
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"cannot read {name} as JSON ({error}): want {_WANTED[size]}") from error
    if wrong := next((g for groups in found.values() for g in groups if len(g) != size), None):
        raise ValueError(f"cannot read {list(wrong)} of {name}: want {_WANTED[size]}")
    return found
