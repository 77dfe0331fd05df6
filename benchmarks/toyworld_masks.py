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
MASKS = {  # measure -> (heading, digits)
    "click": ("one click, first frame", 3),
    "click_tracked": ("tracked from it, whole clip", 3),
    "click_worst": ("its worst frame", 3),
    "middle_tracked": ("tracked from a click in the middle", 3),
    "text": ("box by text, then mask, first frame", 3),
    "text_tracked": ("tracked from it, whole clip", 3),
}
EDITS = {
    "psnr_background": ("background PSNR", 2),
    "target_accuracy": ("target accuracy", 2),
    "psnr_truth": ("PSNR to truth", 2),
    "centroid_error_px": ("centroid px", 2),
}
PLANS = {  # row of the second table -> (which mask, latent cells it is grown by)
    "exact mask": ("exact", 1),
    "tracked mask": ("tracked", 1),
    "tracked mask, dilate 2": ("tracked", 2),
    "exact mask of the old sprite": ("old", 1),
}


class Bench:
    def __init__(self):
        self.sam = load_segmenter(WEIGHTS / "sam" / "sam.safetensors", name="toyworld/sam")
        self.detector = load_detector(WEIGHTS / "detector", name="toyworld/detector")
        self.backbone = load_backbone(WEIGHTS / "video", name="toyworld/video")

    def row(self, index: int) -> dict:
        case = Case.of(index)
        video, alpha = world.render(case.source)
        frames, truth = video[0].movedim(1, -1), alpha[0] > 0.5
        masks, tracked = self.masks(frames, truth, index, world.captions(case.source)[0])
        return {"clip": index, **masks, "edits": self.edits(case, frames, truth, tracked)}

    def masks(self, frames: Tensor, truth: Tensor, index: int, caption: str) -> tuple[dict[str, float], Tensor]:
        """IoUs, and the track from one click in the first frame. A click is anywhere on the sprite."""
        generator = torch.Generator().manual_seed(FIRST_SEED + index)
        clicked, overlap = self.click(frames, truth, 0, generator)
        forward = self.track(frames, clicked, 0)
        middle, _ = self.click(frames, truth, len(frames) // 2, generator)
        both = self.track(frames, middle, len(frames) // 2)
        figures = {
            "click": overlap,
            "click_tracked": iou(forward, truth).mean().item(),
            "click_worst": iou(forward, truth).min().item(),
            "middle_tracked": iou(both, truth).mean().item(),
        }
        what = " ".join(caption.split()[:3])  # "a red square"
        try:
            found = find(self.detector, frames, what)
            mask = segment(self.sam, frames, read_prompts(boxes=found.boxes)).masks
        except ValueError:  # nothing found, which counts
            return figures | {"text": 0.0, "text_tracked": 0.0}, forward.float()
        figures["text"] = iou(mask.bool(), truth[:1]).item()
        figures["text_tracked"] = iou(self.track(frames, mask, 0), truth).mean().item()
        return figures, forward.float()

    def click(self, frames: Tensor, truth: Tensor, k: int, generator: torch.Generator) -> tuple[Tensor, float]:
        x, y = pick(truth[k : k + 1], generator)[0].tolist()
        mask = segment(self.sam, frames, read_prompts(f"{x},{y}", frame=k)).masks
        return mask, iou(mask.bool(), truth[k : k + 1]).item()

    def track(self, frames: Tensor, mask: Tensor, k: int) -> Tensor:
        return track(self.sam, frames, mask, at=(k,)).masks.bool()

    def edits(self, case: Case, frames: Tensor, truth: Tensor, tracked: Tensor) -> dict[str, dict[str, float]]:
        """The masked STR-Match edit with each mask."""
        model = self.backbone
        source, target = (world.captions(clips)[0] for clips in (case.source, case.target))
        trajectory = invert(model, model.encode(frames), model.embed(source), steps=STEPS)
        masks, rows = {"exact": case.mask, "tracked": tracked, "old": truth.float()}, {}
        for name, (which, dilate) in PLANS.items():
            plan = latent_blend(str_latent_optimizer(PLAIN, strength=BEST), masks[which], dilate=dilate)
            prompts = {"negative": model.embed(""), "plan": plan, "guidance": GUIDANCE}
            edited = model.decode(edit(model, trajectory, model.embed(target), **prompts))
            figures = measure(edited.movedim(-1, 1)[None], case.source, case.target)
            rows[name] = {measured: round(figures[measured].item(), 6) for measured in EDITS}
        return rows


def run(clips: int) -> None:
    bench = Bench()
    done = {row["clip"] for row in read_rows()}
    for index in range(clips):
        if index not in done:
            row = bench.row(index)
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
EDITED = """
## STR-Match inside the mask

{steps} steps, strength {strength:g}, guidance {guidance:g}. The exact mask covers the old and the new sprite; the
others cover the old one alone. Latent Blend grows all of them by a cell of 4 pixels, or two where it says so.
Background counts pixels more than 2 px from either sprite.
"""


def table() -> str:
    rows = read_rows()
    lines = [HEADER.format(n=len(rows), seed=FIRST_SEED, date=date.today(), commit=_commit())]
    lines += ["| | IoU |", "|---|---|"]
    for name, (heading, digits) in MASKS.items():
        lines.append(f"| {heading} | {_cell(torch.tensor([r[name] for r in rows]), digits)} |")
    lines += [EDITED.format(steps=STEPS, strength=BEST, guidance=GUIDANCE)]
    lines += ["| | " + " | ".join(h for h, _ in EDITS.values()) + " |", "|---" * (len(EDITS) + 1) + "|"]
    for plan in PLANS:
        cells = [_cell(torch.tensor([r["edits"][plan][m] for r in rows]), d) for m, (_, d) in EDITS.items()]
        lines.append(f"| {plan} | " + " | ".join(cells) + " |")
    exact, *others = PLANS
    for plan in others:
        differences = [[r["edits"][plan][m] - r["edits"][exact][m] for r in rows] for m in EDITS]
        cells = [_cell(torch.tensor(d), digits, "+") for d, (_, digits) in zip(differences, EDITS.values())]
        lines.append(f"| {plan}, less exact mask | " + " | ".join(cells) + " |")
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
