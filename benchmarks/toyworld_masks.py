"""Masks on held-out toy clips whose true mask is known: a click, a text, a track, and an edit inside the track.

    python -m weft.benchmarks.toyworld_masks run      # every clip; goes on where it stopped
    python -m weft.benchmarks.toyworld_masks table    # rows -> benchmarks/results/toyworld_masks.md

The clips and their edits are those of `toyworld_str`. Rows are kept in benchmarks/results/toyworld_masks.jsonl.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from ..backbones.diffusers.loading import load_backbone
from ..engine.edit import edit
from ..engine.inversion import invert
from ..engine.plan import PLAIN
from ..engine.source import Trajectory
from ..methods.latent_blend import LatentBlend
from ..methods.str_match import STRLatentOptimizer
from ..toyworld import world
from ..toyworld.measure import measure
from ..toyworld.sam import iou, pick
from ..vision.detector import load_detector
from ..vision.find import find
from ..vision.prompts import read_prompts
from ..vision.sam import load_segmenter
from ..vision.segment import segment
from ..vision.track import track
from .cases import CLIPS, FIRST_SEED, WEIGHTS, Case, frames_of
from .rows import Rows, arguments, cell, difference, head, line, origin
from .toyworld_str import BEST

ROWS = Rows("toyworld_masks")
STEPS, GUIDANCE = 30, 4.0
THRESHOLD = 0.25  # the node's default
MASKS = {  # measure -> (heading, digits)
    "click": ("one click, first frame", 3),
    "click_tracked": ("tracked from it, whole clip", 3),
    "click_worst": ("its worst frame", 3),
    "middle_tracked": ("tracked from a click in the middle", 3),
    "text": ("box by text, then mask, first frame", 3),
    "text_tracked": ("tracked from it, whole clip", 3),
}
SCORES = {
    "score_right": ("the sprite's own color and shape", 3),
    "score_color": ("another color", 3),
    "score_shape": ("another shape", 3),
}
EDITS = {
    "psnr_background": ("background PSNR", 2),
    "target_accuracy": ("target accuracy", 2),
    "psnr_truth": ("PSNR to truth", 2),
    "centroid_error_px": ("centroid px", 2),
}
EXACT, TRACKED = "exact mask", "tracked mask"
MASKED, INSIDE = "masks", "edits"


@dataclass(frozen=True)
class Setting:
    """One row a clip."""

    section: str
    name: str
    clips: int = CLIPS


SETTINGS = [Setting(MASKED, MASKED), *(Setting(INSIDE, name, 9) for name in (EXACT, TRACKED))]


class Bench:
    def __init__(self):
        self.sam = load_segmenter(WEIGHTS / "sam" / "sam.safetensors", name="toyworld/sam")
        self.detector = load_detector(WEIGHTS / "detector", name="toyworld/detector")
        self.backbone = load_backbone(WEIGHTS / "video", name="toyworld/video")
        self.inverted = lru_cache(maxsize=16)(self._inverted)

    def row(self, setting: Setting, clip: int) -> dict[str, float]:
        case = Case.of(clip)
        video, alpha = world.render(case.source)
        frames, truth = video[0].movedim(1, -1), alpha[0] > 0.5
        if setting.section == MASKED:
            return self.masks(case, frames, truth)
        mask = case.mask if setting.name == EXACT else self.clicked(case, frames, truth, 0)[1].float()
        return self.edited(case, frames, mask)

    def masks(self, case: Case, frames: Tensor, truth: Tensor) -> dict[str, float]:
        """IoUs. A click is anywhere on the sprite."""
        middle = len(frames) // 2
        clicked, tracked = self.clicked(case, frames, truth, 0)
        figures = {
            "click": iou(clicked, truth[:1]).item(),
            "click_tracked": iou(tracked, truth).mean().item(),
            "click_worst": iou(tracked, truth).min().item(),
            "middle_tracked": iou(self.clicked(case, frames, truth, middle)[1], truth).mean().item(),
        }
        what = " ".join(world.captions(case.source)[0].split()[:3])  # "a red square"
        figures |= self.scores(frames[0], *what.split())
        try:
            found = find(self.detector, frames, what)
            mask = segment(self.sam, frames, read_prompts(boxes=found.boxes)).masks
        except ValueError:  # nothing found, which counts
            return figures | {"text": 0.0, "text_tracked": 0.0}
        figures["text"] = iou(mask.bool(), truth[:1]).item()
        figures["text_tracked"] = iou(track(self.sam, frames, mask).masks.bool(), truth).mean().item()
        return figures

    def scores(self, frame: Tensor, article: str, color: str, shape: str) -> dict[str, float]:
        """The best score of any box for the right words, and for words that are wrong in one attribute."""
        colors, shapes = list(world.COLORS), list(world.SHAPES)
        other_color, other_shape = (
            words[(words.index(w) + 1) % len(words)] for words, w in ((colors, color), (shapes, shape))
        )
        asked = {"right": (color, shape), "color": (other_color, shape), "shape": (color, other_shape)}
        return {
            f"score_{name}": self.detector.find(frame, (" ".join((article, *words)),), 1.0)[1]
            for name, words in asked.items()
        }

    def clicked(self, case: Case, frames: Tensor, truth: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """(mask [1, H, W] from a click in frame k, the track [F, H, W] from there), bool."""
        generator = torch.Generator().manual_seed(FIRST_SEED + case.index)
        x, y = pick(truth[k : k + 1], generator)[0].tolist()
        mask = segment(self.sam, frames, read_prompts(f"{x},{y}", frame=k)).masks
        return mask.bool(), track(self.sam, frames, mask, at=(k,)).masks.bool()

    def edited(self, case: Case, frames: Tensor, mask: Tensor) -> dict[str, float]:
        """The STR-Match edit inside a mask."""
        model = self.backbone
        plan = PLAIN.then(STRLatentOptimizer(strength=BEST)).then(LatentBlend(mask))
        prompts = {"negative": model.text.embed(""), "plan": plan, "guidance": GUIDANCE}
        target = model.text.embed(world.captions(case.target)[0])
        video = model.codec.decode(edit(model, self.inverted(case.index), target, **prompts))
        figures = measure(video.movedim(-1, 1)[None], case.source, case.target)
        return {measured: figures[measured].item() for measured in EDITS}

    def _inverted(self, clip: int) -> Trajectory:
        model, source = self.backbone, Case.of(clip).source
        return invert(
            model, model.codec.encode(frames_of(source)), model.text.embed(world.captions(source)[0]), steps=STEPS
        )


HEADER = """# Masks on the toy world

{n} held-out clips (seeds {seed} and up, those of `toyworld_str`), models `toyworld/sam`, `toyworld/detector` and
`toyworld/video` in float32 on a CPU, {date}, commit {commit}. Commands: `python -m weft.benchmarks.toyworld_masks run`,
then `table`. Each cell is a mean [95 % bootstrap interval of the mean over clips].

## Intersection over union with the true mask

A click is a random pixel of the sprite. The text is "a red square" and the like; a clip where nothing is found counts
as 0. A track of a whole clip includes the frame it starts from.
"""
SCORED = """
## What the detector makes of wrong words

Best score of any box of the first frame. The node's default threshold is 0.25.
"""
EDITED = """
## STR-Match inside the mask

{n} of these clips, {steps} steps, strength {strength:g}, guidance {guidance:g}. The exact mask covers the old and the
new sprite; the tracked one, from a click in the first frame, the old one alone. Latent Blend grows both by a cell of 4
pixels. Background counts pixels more than 2 px from either sprite.
"""


def table() -> str:
    groups = ROWS.groups()
    masks, exact, tracked = (groups[s.section, s.name] for s in SETTINGS)
    measured = {name: torch.tensor([row[name] for row in masks.values()]) for name in (*MASKS, *SCORES)}
    lines = [HEADER.format(n=len(masks), seed=FIRST_SEED, **origin()), "| | IoU |", "|---|---|"]
    lines += [f"| {heading} | {cell(measured[name], digits)} |" for name, (heading, digits) in MASKS.items()]
    lines += [SCORED, "| words | score |", "|---|---|"]
    lines += [f"| {heading} | {cell(measured[name], digits)} |" for name, (heading, digits) in SCORES.items()]
    right, *wrong = (measured[name] for name in SCORES)
    ahead, over = ((right > torch.stack(wrong).amax(0)), torch.stack(wrong) >= THRESHOLD)
    lines.append(f"| share of clips where the right words score best | {cell(ahead.float(), 2)} |")
    lines.append(f"| share of wrong words at {THRESHOLD:g} and over | {cell(over.float().mean(0), 2)} |")
    lines += [EDITED.format(n=len(exact), steps=STEPS, strength=BEST, guidance=GUIDANCE), *head(EDITS)]
    lines += [line(name, rows.values(), EDITS) for name, rows in ((EXACT, exact), (TRACKED, tracked))]
    return "\n".join([*lines, *difference("difference, clip by clip", tracked, exact, EDITS)]) + "\n"


def main() -> None:
    work = arguments(__doc__)
    if work.what == "run":
        ROWS.fill(SETTINGS, Bench().row, work)
    else:
        ROWS.table.write_text(table())


if __name__ == "__main__":
    main()
