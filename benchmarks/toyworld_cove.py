"""COVE on held-out toy clips: are its correspondences right, and does attention along them steady an edit?

    python -m weft.benchmarks.toyworld_cove run      # every setting on every clip; goes on where it stopped
    python -m weft.benchmarks.toyworld_cove table    # rows -> benchmarks/results/toyworld_cove.md
    python -m weft.benchmarks.toyworld_cove sheet    # pictures of some clips -> a PNG to look at

Clips, edits and intervals are those of `toyworld_str`. Rows are kept in benchmarks/results/toyworld_cove.jsonl: one a
setting and clip. `run --part 1/2` does every second clip, for one process a core.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from dataclasses import dataclass, replace
from datetime import date
from functools import lru_cache
from itertools import pairwise, product
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ..backbones.loading import load_backbone
from ..engine.inversion import invert
from ..engine.nouns import PLAIN, EditPlan
from ..engine.sampling import edit
from ..methods.correspondence import correspondence
from ..methods.correspondence_attention import correspondence_attention
from ..methods.injection import feature_injection
from ..methods.spatio_temporal import spatio_temporal_attention
from ..toyworld import world
from ..toyworld.measure import contact_sheet, measure, sample_accuracy
from ..toyworld.motion import warp_error
from .toyworld_str import CLIPS, FIRST_SEED, ROOT, Case, _cell, _commit

ROWS = ROOT / "benchmarks" / "results" / "toyworld_cove.jsonl"
TABLE = ROWS.with_suffix(".md")
MODEL = ROOT / "toyworld" / "weights" / "image"
STEPS, GUIDANCE = 8, 3.0  # dense attention over 2,048 tokens a layer is slow on a CPU
INJECTION = {"feature_steps": 6, "attention_steps": 6}  # the papers' 40 of 50
CORRECT = 0.5  # of the sprite's radius
KEYPOINTS = torch.tensor([[0, 0], [0.5, 0], [-0.5, 0], [0, 0.5], [0, -0.5]])  # of the radius, from the sprite's centre
MATCHES, GROUND, SPRITE = "correspondences", "edits of the background", "edits of the sprite"
WARP = {
    "warp": ("warp error", 1),
    "warp_sprite": ("on the sprite", 1),
    "warp_background": ("on the background", 1),
}
SHOWN = {  # section -> {measure: (heading, digits)}
    MATCHES: {"pck_next": ("PCK, next frame", 3), "pck_all": ("PCK, first frame to all others", 3)},
    GROUND: WARP
    | {
        "background_accuracy": ("background color", 2),
        "pattern_accuracy": ("pattern", 2),
        "sprite_accuracy": ("sprite as it was", 2),
    },
    SPRITE: WARP
    | {
        "target_accuracy": ("target accuracy", 2),
        "psnr_truth": ("PSNR to truth", 2),
        "psnr_background": ("background PSNR", 2),
        "centroid_error_px": ("centroid px", 2),
    },
}


@dataclass(frozen=True)
class Setting:
    """One row of a table."""

    name: str
    section: str
    kind: str = "edit"  # or "match", "flow", "still"; "source": do nothing; "ceiling": the true edit through the VAE
    match: tuple = ()  # keywords of `correspondence`, as pairs
    enlarge: int = 1  # of the frames, before they are matched
    attention: str = ""  # "dense": spatio-temporal; "cove": correspondence attention around it
    guide: tuple = (("merge_ratio", 0.0),)  # keywords of `correspondence_attention`, as pairs
    inverted: bool = True  # the attention also guides the inversion
    injected: bool = False


def settings() -> list[Setting]:
    """In the order of the tables."""
    edges = [("do nothing (the source)", "source"), ("ceiling (the true edit through the VAE)", "ceiling")]
    every = _pairs(levels="all", merge_ratio=0.0)
    main = [
        ("frame by frame", {}),
        ("spatio-temporal attention", {"attention": "dense"}),
        ("COVE, K = 3", {"attention": "cove", "guide": every}),
        ("COVE, K = 3, finest level only", {"attention": "cove"}),
    ]
    variants = [
        ("COVE, K = 1", {"match": _pairs(top_k=1), "guide": every}),
        ("COVE, K = 5", {"match": _pairs(top_k=5), "guide": every}),
        ("COVE, K = 3, half merged", {"guide": _pairs(levels="all", merge_ratio=0.5)}),
        ("COVE, K = 3, pairs merged", {"guide": _pairs(levels="all", merge_ratio=0.5, merging="pairs")}),
    ]
    return [
        *(Setting(name, GROUND, kind) for name, kind in edges),
        *(Setting(name, GROUND, **numbers) for name, numbers in main),
        *(Setting(name, GROUND, attention="cove", **numbers) for name, numbers in variants),
        *(Setting(name, SPRITE, kind) for name, kind in edges),
        *(Setting(name, SPRITE, injected=True, **numbers) for name, numbers in main),
        Setting("stand still", MATCHES, "still"),
        Setting("DIS optical flow", MATCHES, "flow"),
        Setting("DIS optical flow, frames twice as large", MATCHES, "flow", enlarge=2),
        Setting("features, 16x16 (the grid of the edits)", MATCHES, "match"),
        Setting("features, 16x16, ensemble 8", MATCHES, "match", _pairs(ensemble=8)),
        Setting("features, frames twice as large, 32x32", MATCHES, "match", enlarge=2),
        Setting("features, frames twice as large, 32x32, ensemble 8", MATCHES, "match", _pairs(ensemble=8), 2),
    ]


def _pairs(**numbers) -> tuple:
    return tuple(numbers.items())


def case_of(index: int, section: str) -> Case:
    """The clip of `toyworld_str` with its edit, or with another background: color and pattern."""
    case = Case.of(index)
    if section != GROUND:
        return case
    generator = torch.Generator().manual_seed(FIRST_SEED + index)
    return replace(case, target=world.edit(case.source, generator, ("background", "pattern")))


class Bench:
    """Runs settings on cases."""

    def __init__(self, model: Path = MODEL):
        self.backbone = load_backbone(model, name="toyworld/image")
        self.latents = lru_cache(maxsize=4)(self._latents)
        self.found = lru_cache(maxsize=16)(self._found)

    def row(self, case: Case, setting: Setting) -> dict:
        figures = {"match": self.tracked, "flow": self.tracked, "still": self.tracked}.get(setting.kind, self.edited)
        names = {"setting": setting.name, "section": setting.section, "clip": case.index}
        return names | {name: round(value, 6) for name, value in figures(case, setting).items()}

    # ---- correspondences --------------------------------------------------------------------------------------------

    def _latents(self, index: int, enlarge: int = 1) -> Tensor:
        frames = world.render(Case.of(index).source)[0][0]
        if enlarge > 1:
            frames = F.interpolate(frames, scale_factor=enlarge, mode="bilinear")
        return self.backbone.encode(frames.movedim(1, -1))

    def _found(self, index: int, match: tuple, enlarge: int = 1):
        return correspondence(self.backbone, self.latents(index, enlarge), **dict(match))

    def tracked(self, case: Case, setting: Setting) -> dict[str, float]:
        """Shares of keypoints of the sprite that are followed to within half its radius."""
        clips = case.source
        cells, hop = {"match": self._by_features, "flow": _by_flow, "still": _by_standing}[setting.kind](case, setting)
        center, radius, size = clips.center[0], clips.radius[0], world.SIZE / cells
        correct = {"pck_next": [], "pck_all": []}
        for frame in range(len(center) - 1):
            points = center[frame] + KEYPOINTS * radius
            cell = (points / size).long().clamp(0, cells - 1)
            at, within = cell[:, 1] * cells + cell[:, 0], points - cell * size
            for other in range(frame + 1, len(center) if frame == 0 else frame + 2):
                at = hop(other - 1, at)
                there = torch.stack([at % cells, at // cells], -1) * size + within
                right = (there - points - (center[other] - center[frame])).norm(dim=-1) <= CORRECT * radius
                correct["pck_next"] += [right] if other == frame + 1 else []
                correct["pck_all"] += [right] if frame == 0 else []
        return {name: torch.cat(values).float().mean().item() for name, values in correct.items()}

    def _by_features(self, case: Case, setting: Setting):
        found = self.found(case.index, setting.match, setting.enlarge)
        return found.grid[1], lambda frame, at: found.forward[frame, at, 0].long()

    # ---- edits ------------------------------------------------------------------------------------------------------

    def plan(self, case: Case, setting: Setting) -> EditPlan:
        plan = PLAIN
        if setting.attention == "cove":
            plan = correspondence_attention(plan, self.found(case.index, setting.match), **dict(setting.guide))
        return spatio_temporal_attention(plan) if setting.attention else plan

    def inverted(self, case: Case, setting: Setting):
        prompt = self.backbone.embed(world.captions(case.source)[0])
        plan = self.plan(case, setting) if setting.inverted else PLAIN
        return invert(self.backbone, self.latents(case.index), prompt, steps=STEPS, plan=plan)

    def frames(self, case: Case, setting: Setting) -> Tensor:
        """[F, H, W, 3] in 0..1: the edited clip."""
        if setting.kind != "edit":
            frames = world.render(case.source if setting.kind == "source" else case.target)[0][0].movedim(1, -1)
            return frames if setting.kind == "source" else self.backbone.decode(self.backbone.encode(frames))
        plan = self.plan(case, setting)
        if setting.injected:
            plan = EditPlan((*feature_injection(PLAIN, **INJECTION).controls, *plan.controls))
        prompt, negative = self.backbone.embed(world.captions(case.target)[0]), self.backbone.embed("")
        trajectory = self.inverted(case, setting)
        edited = edit(self.backbone, trajectory, prompt, negative=negative, plan=plan, guidance=GUIDANCE)
        return self.backbone.decode(edited)

    def edited(self, case: Case, setting: Setting) -> dict[str, float]:
        video = self.frames(case, setting).movedim(-1, 1)[None]
        if setting.section == GROUND:  # its phase is not in the caption: any will do
            figures = sample_accuracy(video, case.target)
            figures["sprite_accuracy"] = figures.pop("target_accuracy")
        else:
            figures = measure(video, case.source, case.target)
        figures = {name: value.item() for name, value in figures.items()}
        for name, where in (("warp", "all"), ("warp_sprite", "sprite"), ("warp_background", "background")):
            figures[name] = warp_error(video, case.target, where).item()
        return figures


def _by_flow(case: Case, setting: Setting):
    """OpenCV's dense inverse search flow at its finest preset, read at the nearest pixel and rounded to it."""
    import cv2

    frames = F.interpolate(world.render(case.source)[0][0], scale_factor=setting.enlarge, mode="bilinear")
    gray = [cv2.cvtColor((f.movedim(0, -1) * 255).byte().numpy(), cv2.COLOR_RGB2GRAY) for f in frames]
    dis = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    flows = [torch.from_numpy(dis.calc(a, b, None)) for a, b in pairwise(gray)]
    side = frames.shape[-1]

    def hop(frame: int, at: Tensor) -> Tensor:
        moved = torch.stack([at % side, at // side], -1) + flows[frame][at // side, at % side].round().long()
        moved = moved.clamp(0, side - 1)
        return moved[:, 1] * side + moved[:, 0]

    return side, hop


def _by_standing(case: Case, setting: Setting):
    return world.SIZE, lambda frame, at: at


# ---- rows and tables ------------------------------------------------------------------------------------------------


def run(part: int, parts: int, clips: int, model: Path, only: str) -> None:
    bench = Bench(model)
    done = {(r["setting"], r["section"], r["clip"]) for r in read_rows()}
    first = [s for s in settings() if s.section == GROUND and s.name in SEEN]
    # Clip by clip: a run that is stopped has every difference between settings on the same clips.
    for some, index in product((first, [s for s in settings() if s not in first]), range(part, clips, parts)):
        for setting in some:
            if (setting.name, setting.section, index) in done or only not in f"{setting.section}: {setting.name}":
                continue
            row = bench.row(case_of(index, setting.section), setting)
            with ROWS.open("a") as stream:
                stream.write(json.dumps(row) + "\n")


def read_rows() -> list[dict]:
    return [json.loads(line) for line in ROWS.read_text().splitlines()] if ROWS.exists() else []


def table() -> str:
    groups: dict[tuple[str, str], dict[int, dict]] = defaultdict(dict)
    for row in read_rows():
        groups[row["section"], row["setting"]][row["clip"]] = row
    numbers = {"date": date.today(), "commit": _commit(), "clips": CLIPS, "seed": FIRST_SEED, "steps": STEPS}
    lines = [HEADER.format(guidance=GUIDANCE, **numbers)]
    for section in SHOWN:
        shown = SHOWN[section]
        rows = [s for s in settings() if s.section == section and (section, s.name) in groups]
        if not rows:
            continue
        lines += [f"\n## {section.capitalize()}\n", TEXTS.get(section, "")]
        lines += ["| | n | " + " | ".join(h for h, _ in shown.values()) + " |", "|---" * (len(shown) + 2) + "|"]
        for setting in rows:
            clips = groups[section, setting.name].values()
            cells = [_cell(torch.tensor([r[m] for r in clips]), d) for m, (_, d) in shown.items()]
            lines.append(f"| {setting.name} | {len(clips)} | " + " | ".join(cells) + " |")
        if section != MATCHES:
            lines += _differences(groups, section, rows)
    return "\n".join(lines) + "\n"


def _differences(groups, section: str, rows: list[Setting]) -> list[str]:
    shown, lines = list(SHOWN[section])[:5], []
    for base in (s for s in rows if s.kind == "edit" and s.attention in ("", "dense")):
        lines += [f'\nDifferences to "{base.name}", clip by clip:\n']
        lines += ["| | n | " + " | ".join(SHOWN[section][m][0] for m in shown) + " |", "|---" * (len(shown) + 2) + "|"]
        for setting in rows:
            mine, other = groups[section, setting.name], groups[section, base.name]
            both = sorted(set(mine) & set(other))
            if setting.kind == "edit" and setting != base and both:
                cells = [_cell(torch.tensor([mine[i][m] - other[i][m] for i in both]), 2, "+") for m in shown]
                lines.append(f"| {setting.name} | {len(both)} | " + " | ".join(cells) + " |")
    return lines


HEADER = """# COVE on the toy world

Held-out clips (n of {clips}; seeds {seed} and up, one each), model `toyworld/image` in float32 on a CPU, {date}, commit
{commit}. Commands: `python -m weft.benchmarks.toyworld_cove run`, then `table`. Each cell is a mean [95 % bootstrap
interval of the mean over clips]. Edits: {steps} steps, guidance {guidance:g}, empty negative prompt. Attention guides
the inversion as well as the edit, as in the paper.

Warp error: each frame carried along the exact motion of the true edit and held against the next one, root mean square
in levels of 255 over pixels that both show; 0 is perfect. PCK: share of points of the sprite (its centre and four at
half its radius) that are found within half its radius of where they are, by exact motion."""

TEXTS = {
    GROUND: """Another color and another pattern behind the sprite. The caption does not say where stripes or checkers
begin, so frames that are edited one by one disagree: this is flicker. No injection. COVE acts at all levels where
nothing else is said: at the finest alone it moves this network's output by 2 to 4 %, at all levels by 12 to 20 %.
""",
    SPRITE: """A third of the edits change color, a third shape, a third both. The caption says all there is to say, so
frames agree on what to show; what is left in the warp error is where the sprite is drawn. Features are injected in 6 of
the 8 steps (the papers' 40 of 50).
""",
    MATCHES: """From frame to frame, and chained from the first frame to every other, as the paper measures. The grid of
the edits has places of 4 pixels, and a chain rounds to them at every hop; with frames twice as large the same network
matches places of 2 pixels.
""",
}


SEEN = ("do nothing (the source)", "frame by frame", "spatio-temporal attention", "COVE, K = 3")


def sheet(path: Path, indices: list[int], model: Path) -> None:
    """A PNG of the main settings on some clips, for the eye."""
    bench, rows, labels = Bench(model), [], []
    for section, index in product((GROUND, SPRITE), indices):
        case = case_of(index, section)
        for setting in (s for s in settings() if s.section == section and s.name in SEEN):
            rows.append(bench.frames(case, setting))
            labels.append(f"clip {index}: {setting.name}")
        rows.append(world.render(case.target)[0][0])
        labels.append(f"clip {index}: truth")
    contact_sheet(rows, path, 2, labels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "table", "sheet"))
    parser.add_argument("--part", default="1/1", help="i/n: every n-th clip, from the i-th")
    parser.add_argument("--clips", type=int, default=CLIPS)
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--only", default="", help="settings whose 'section: name' contains this")
    parser.add_argument("--sheet", type=Path, default=ROOT / "toyworld" / "runs" / "cove.png", help="where it goes")
    arguments = parser.parse_args()
    if arguments.what == "run":
        part, parts = (int(n) for n in arguments.part.split("/"))
        run(part - 1, parts, arguments.clips, arguments.model, arguments.only)
    elif arguments.what == "table":
        TABLE.write_text(table())
    else:
        sheet(arguments.sheet, [0, 1], arguments.model)


if __name__ == "__main__":
    main()
