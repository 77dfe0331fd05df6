"""How measures are reported: the interval of a mean, a picture of clips under each other, and clips side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor


def bootstrap_interval(
    values: Tensor | Sequence[float], draws: int = 2000, seed: int = 0, level: float = 0.95
) -> tuple[float, float]:
    """(low, high): the percentile bootstrap interval of the mean of values [n].

    To compare two methods on the same clips, pass the n differences.

    Raises:
        ValueError: values are not one row of at least one number, or level is not between 0 and 1.
    """
    values = torch.as_tensor(values, dtype=torch.float64).cpu()
    if values.ndim != 1 or not len(values):
        raise ValueError(f"want a row of values, got shape {list(values.shape)}")
    if not 0 < level < 1:
        raise ValueError(f"want a level between 0 and 1, got {level}")
    index = torch.randint(len(values), (draws, len(values)), generator=torch.Generator().manual_seed(seed))
    tails = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    low, high = values[index].mean(1).quantile(tails).tolist()
    return low, high


def contact_sheet(
    rows: Sequence[Tensor], path: str | Path, scale: int = 3, labels: Sequence[str] | None = None
) -> None:
    """Writes a PNG with one clip a row, its frames from left to right.

    Args:
        rows: clips [F, 3, H, W] or [F, H, W, 3] in 0..1 of one picture size; their lengths may differ.
        path: its folder is made if need be.
        scale: picture pixels become squares of so many pixels.
        labels: one line of text above each row.

    Raises:
        ValueError: there are no rows, they differ in picture size, or labels do not match them in number.
    """
    from PIL import Image, ImageDraw, ImageFont

    clips = _of_one_size(rows, labels)
    height, width = (size * scale for size in clips[0].shape[1:3])
    gap, text = 2, 0 if labels is None else 14
    size = (max(len(clip) for clip in clips) * (width + gap) + gap, len(clips) * (height + text + gap) + gap)
    sheet = Image.new("RGB", size, "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    for i, clip in enumerate(clips):
        top = gap + i * (height + text + gap)
        if labels is not None:
            pen.text((gap, top), labels[i], fill="black", font=font)
        for j, frame in enumerate(clip):
            sheet.paste(_enlarged(frame, scale), (gap + j * (width + gap), top + text))
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)


def side_by_side(
    clips: Sequence[Tensor], path: str | Path, labels: Sequence[str], scale: int = 4, fps: float = 8
) -> None:
    """Writes a GIF that plays clips beside each other, over and over, a line of text above each.

    Args:
        clips: as the rows of `contact_sheet`; it ends with the shortest.
        path: its folder is made if need be.

    Raises:
        ValueError: what `contact_sheet` refuses.
    """
    from PIL import Image, ImageDraw, ImageFont

    clips = _of_one_size(clips, labels)
    height, width = (size * scale for size in clips[0].shape[1:3])
    gap, text, font, pages = 6, 22, ImageFont.load_default(15), []
    for moment in zip(*clips):
        page = Image.new("RGB", (len(clips) * (width + gap) + gap, height + text + gap), "white")
        pen = ImageDraw.Draw(page)
        for k, frame in enumerate(moment):
            pen.text((gap + k * (width + gap), 2), labels[k], fill="black", font=font)
            page.paste(_enlarged(frame, scale), (gap + k * (width + gap), text))
        pages.append(page)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    pages[0].save(path, save_all=True, append_images=pages[1:], duration=round(1000 / fps), loop=0)


def _enlarged(frame: Tensor, scale: int):
    """A picture of a frame [H, W, 3], its pixels squares."""
    from PIL import Image

    picture = Image.fromarray((frame * 255).round().byte().numpy())
    return picture.resize((picture.width * scale, picture.height * scale), Image.NEAREST)


def _of_one_size(clips: Sequence[Tensor], labels: Sequence[str] | None) -> list[Tensor]:
    clips = [_channels_last(clip) for clip in clips]
    if len({clip.shape[1:] for clip in clips}) != 1:
        raise ValueError(f"want clips of one picture size, got {[list(clip.shape) for clip in clips]}")
    if labels is not None and len(labels) != len(clips):
        raise ValueError(f"{len(labels)} labels for {len(clips)} rows")
    return clips


def _channels_last(clip: Tensor) -> Tensor:
    if clip.ndim != 4 or 3 not in (clip.shape[1], clip.shape[3]):
        raise ValueError(f"want a clip [F, 3, H, W] or [F, H, W, 3], got {list(clip.shape)}")
    clip = clip.detach().float().cpu().clamp(0, 1)
    return clip.permute(0, 2, 3, 1) if clip.shape[1] == 3 else clip
