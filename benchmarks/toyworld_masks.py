"""Masks on held-out toy clips whose true mask is known: a click, a text, a track, and an edit inside the track.

    python -m weft.benchmarks.toyworld_masks run      # every clip; goes on where it stopped
    python -m weft.benchmarks.toyworld_masks table    # rows -> benchmarks/results/toyworld_masks.md

The clips and their edits are those of `toyworld_str`. Rows are kept in benchmarks/results/toyworld_masks.jsonl.
"""

from __future__ import annotations

import argparse
import json
from datetime import date
from pathlib import Path

import torch
from torch import Tensor

from ..backbones.detector import load_detector
from ..backbones.loading import load_backbone
from ..backbones.sam import load_segmenter
from ..engine.inversion import invert
from ..engine.nouns import PLAIN
from ..engine.sampling import edit
from ..methods.latent_blend import latent_blend
from ..methods.mask.find import find
from ..methods.mask.prompts import read_prompts
from ..methods.mask.segment import segment
from ..methods.mask.track import track
from ..methods.str_match import str_latent_optimizer
from ..toyworld import world
from ..toyworld.measure import measure
from ..toyworld.sam import iou, pick
from .toyworld_str import BEST, CLIPS, FIRST_SEED, Case, _cell, _commit

ROOT = Path(__file__).resolve().parents[1]
ROWS = ROOT / "benchmarks" / "results" / "toyworld_masks.jsonl"
TABLE = ROWS.with_suffix(".md")
WEIGHTS = ROOT / "toyworld" / "weights"
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
PLANS = ("exact mask", "tracked mask")


class Bench:
    def __init__(self):
        self.sam = load_segmenter(WEIGHTS / "sam" / "sam.safetensors", name="toyworld/sam")
        self.detector = load_detector(WEIGHTS / "detector", name="toyworld/detector")
        self.backbone = load_backbone(WEIGHTS / "video", name="toyworld/video")

    def row(self, index: int, section: str) -> dict:
        case = Case.of(index)
        video, alpha = world.render(case.source)
        frames, truth = video[0].movedim(1, -1), alpha[0] > 0.5
        figures = (self.masks if section == "masks" else self.edits)(case, frames, truth)
        return {"section": section, "clip": index, **figures}

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

    def edits(self, case: Case, frames: Tensor, truth: Tensor) -> dict[str, dict[str, float]]:
        """The masked STR-Match edit with each mask."""
        model = self.backbone
        source, target = (world.captions(clips)[0] for clips in (case.source, case.target))
        trajectory = invert(model, model.encode(frames), model.embed(source), steps=STEPS)
        rows = {}
        for name, mask in zip(PLANS, (case.mask, self.clicked(case, frames, truth, 0)[1].float()), strict=True):
            plan = latent_blend(str_latent_optimizer(PLAIN, strength=BEST), mask)
            prompts = {"negative": model.embed(""), "plan": plan, "guidance": GUIDANCE}
            edited = model.decode(edit(model, trajectory, model.embed(target), **prompts))
            figures = measure(edited.movedim(-1, 1)[None], case.source, case.target)
            rows[name] = {measured: round(figures[measured].item(), 6) for measured in EDITS}
        return rows


def run(clips: int) -> None:
    bench = Bench()
    done = {(row["section"], row["clip"]) for row in read_rows()}
    for section in ("masks", "edits"):
        for index in range(clips):
            if (section, index) not in done:
                row = bench.row(index, section)
                with ROWS.open("a") as stream:
                    stream.write(json.dumps(row) + "\n")


def read_rows() -> list[dict]:
    return [json.loads(line) for line in ROWS.read_text().splitlines()] if ROWS.exists() else []


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
    masks, edits = ([row for row in read_rows() if row["section"] == section] for section in ("masks", "edits"))
    lines = [HEADER.format(n=len(masks), seed=FIRST_SEED, date=date.today(), commit=_commit())]
    lines += ["| | IoU |", "|---|---|"]
    for name, (heading, digits) in MASKS.items():
        lines.append(f"| {heading} | {_cell(torch.tensor([r[name] for r in masks]), digits)} |")
    lines += [SCORED, "| words | score |", "|---|---|"]
    for name, (heading, digits) in SCORES.items():
        lines.append(f"| {heading} | {_cell(torch.tensor([r[name] for r in masks]), digits)} |")
    right, *wrong = (torch.tensor([r[name] for r in masks]) for name in SCORES)
    ahead, over = ((right > torch.stack(wrong).amax(0)), torch.stack(wrong) >= THRESHOLD)
    lines.append(f"| share of clips where the right words score best | {_cell(ahead.float(), 2)} |")
    lines.append(f"| share of wrong words at {THRESHOLD:g} and over | {_cell(over.float().mean(0), 2)} |")
    lines += [EDITED.format(n=len(edits), steps=STEPS, strength=BEST, guidance=GUIDANCE)]
    lines += ["| | " + " | ".join(h for h, _ in EDITS.values()) + " |", "|---" * (len(EDITS) + 1) + "|"]
    measured = {plan: {m: torch.tensor([r[plan][m] for r in edits]) for m in EDITS} for plan in PLANS}
    for plan in PLANS:
        cells = [_cell(measured[plan][m], digits) for m, (_, digits) in EDITS.items()]
        lines.append(f"| {plan} | " + " | ".join(cells) + " |")
    exact, tracked = (measured[plan] for plan in PLANS)
    cells = [_cell(tracked[m] - exact[m], digits, "+") for m, (_, digits) in EDITS.items()]
    lines.append("| difference, clip by clip | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "table"))
    parser.add_argument("--clips", type=int, default=CLIPS)
    arguments = parser.parse_args()
    if arguments.what == "run":
        run(arguments.clips)
    else:
        TABLE.write_text(table())


if __name__ == "__main__":
    main()
