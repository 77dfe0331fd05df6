"""VIA on held-out toy clips whose right edit is known: do frames agree, and is the background kept?

    python -m weft.benchmarks.toyworld_via run      # every setting on every clip; goes on where it stopped
    python -m weft.benchmarks.toyworld_via table    # rows -> benchmarks/results/toyworld_via.md
    python -m weft.benchmarks.toyworld_via sheet    # some clips under every setting -> toyworld_via.jpg

Clip i has a seed of its own, and changes color, shape or both in turn. Rows are kept in
benchmarks/results/toyworld_via.jsonl: one a setting and clip. `toyworld_via_long` measures a minute of video, and its
table is added.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
from collections import defaultdict
from dataclasses import dataclass, replace
from datetime import date
from functools import lru_cache, partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ..backbones.loading import load_backbone
from ..backbones.lora import adapt
from ..engine.inversion import add_noise
from ..engine.nouns import PLAIN, EditPlan
from ..engine.sampling import edit
from ..methods.adaptation import candidates, fit
from ..methods.gather_swap import gather_swap
from ..methods.latent_blend import latent_blend
from ..toyworld import world
from ..toyworld.measure import (
    bootstrap_interval,
    consistency,
    contact_sheet,
    measure,
    psnr,
    sample_accuracy,
)
from .toyworld_str import FIRST_SEED, Case
from .toyworld_via_long import long_table

ROOT = Path(__file__).resolve().parents[1]
ROWS = ROOT / "benchmarks" / "results" / "toyworld_via.jsonl"
TABLE, SHEET = ROWS.with_suffix(".md"), ROWS.with_suffix(".jpg")
MODEL = ROOT / "toyworld" / "weights" / "instruct"
CLIPS, STEPS = 48, 10
GUIDANCE, IMAGE_GUIDANCE = 2.0, 1.5  # chosen on clips 100 to 105, which no table counts
SHOWN = {  # measure -> (heading, digits); the table's columns
    "color_spread": ("color spread", 3),
    "shape_spread": ("shape spread", 3),
    "background_spread": ("background spread", 3),
    "target_accuracy": ("target accuracy", 2),
    "psnr_background": ("background", 2),
    "psnr_kept": ("background to the VAE's", 2),
    "psnr_truth": ("PSNR to truth", 2),
    "centroid_error_px": ("centroid px", 2),
}
SHOWN_WHOLE = {  # the same where the background is edited
    "background_spread": ("background spread", 3),
    "background_accuracy": ("background's color", 2),
    "pattern_accuracy": ("its pattern", 2),
}
CANDIDATES = 4
TRAINING = {"steps": 100, "rate": 2e-4}  # chosen by eye on the clip that ships with the workflows


@dataclass(frozen=True)
class Setting:
    """One row of the table."""

    name: str
    noise: str = "shared"
    group: int = 0  # frames gathered from; 0: gather-swap is not used
    blend: str = ""  # schedule of the latent blend
    root: str = ""  # of the root pair: "seed" takes its noise only, "adapted" trains on it too
    kind: str = "edit"  # or "source": do nothing; "ceiling": the true edit through the VAE
    clips: int = CLIPS
    guidance: float = GUIDANCE
    whole: bool = False  # edit the background instead of the sprite

    def case(self, index: int) -> Case:
        return background_case(index) if self.whole else Case.of(index)

    def plan(self, case: Case) -> EditPlan:
        plan = gather_swap(PLAIN, group=self.group) if self.group else PLAIN
        return latent_blend(plan, case.mask, schedule=self.blend, dilate=0) if self.blend else plan


PAPER = 7.5  # InstructPix2Pix's guidance, for want of VIA's
EACH, SHARED, GATHERED = "per frame, a noise each", "per frame, shared noise", "gather-swap, 4 frames"
ADAPTED = "gather-swap, test-time adaptation to the best"
FEW = 8  # clips of what takes long


def strong(name: str, **changes) -> Setting:
    return Setting(f"{name}, guidance {PAPER:g}", guidance=PAPER, **changes)


def whole(name: str, **changes) -> Setting:
    return Setting(f"{WHOLE}{name}", whole=True, **changes)


WHOLE = "background: "
BLENDS = ("hard", "shrink", "paper_ramp")
SETTINGS = [
    Setting("do nothing (the source)", kind="source"),
    Setting("ceiling (the true edit through the VAE)", kind="ceiling"),
    strong(EACH, noise="per_frame"),
    strong(SHARED),
    strong("cross-frame attention to the first frame", group=1),
    strong(GATHERED, group=4),
    *(strong(f"shared noise + blend, {schedule}", blend=schedule) for schedule in BLENDS),
    strong("gather-swap + blend, hard", group=4, blend="hard", clips=FEW),
    strong("gather-swap, the best of 4 seeds", group=4, root="seed", clips=FEW),
    strong(ADAPTED, group=4, root="adapted", clips=FEW),
    strong("per frame, a noise each, test-time adaptation", noise="per_frame", root="adapted", clips=FEW),
    Setting(EACH, noise="per_frame"),
    Setting(SHARED),
    Setting(GATHERED, group=4),
    whole("the true edit through the VAE", kind="ceiling"),
    whole(EACH, noise="per_frame"),
    whole(SHARED),
    whole("cross-frame attention to the first frame", group=1),
    whole(GATHERED, group=4),
    whole("gather-swap, a noise each", noise="per_frame", group=4, clips=FEW),
    whole(ADAPTED, group=4, root="adapted", clips=FEW),
    whole("per frame, a noise each, test-time adaptation", noise="per_frame", root="adapted", clips=FEW),
]
BASES = (strong(EACH).name, strong(SHARED).name, EACH, whole(EACH).name, whole(SHARED).name)


class Bench:
    """Runs settings on cases."""

    def __init__(self, model: Path = MODEL):
        self.backbone = load_backbone(model, name="toyworld/instruct")
        self.adapted = lru_cache(maxsize=FEW)(self._adapted)
        self.root = lru_cache(maxsize=64)(self._root)
        self.through_vae = lru_cache(maxsize=64)(self._through_vae)

    def _through_vae(self, index: int) -> Tensor:
        """[1, F, 3, H, W]: the source as the VAE gives it back, which is all that a blend can keep of it."""
        return self.backbone.decode(self.backbone.encode(frames_of(Case.of(index).source))).movedim(-1, 1)[None]

    def _root(self, index: int, whole: bool) -> tuple[Tensor, Tensor, int]:
        """(frame, its best edit, its seed): of the middle frame, by the renderer's eye for the human's.

        The best is right in color and shape, and then nearest to the truth.
        """
        case = background_case(index) if whole else Case.of(index)
        middle = case.source.center.shape[1] // 2
        frame = frames_of(case.source)[middle : middle + 1]
        text = self.backbone.embed(instruction(case))
        scales = {"guidance": GUIDANCE, "image_guidance": IMAGE_GUIDANCE}
        edits = candidates(self.backbone, frame, text, count=CANDIDATES, steps=STEPS, **scales)
        one = [at_frame(clips, middle) for clips in (case.source, case.target)]
        scored = [measure(e.movedim(-1, 0)[None, None], *one) for e in edits]
        best = max(range(CANDIDATES), key=lambda i: [scored[i][m].item() for m in ("target_accuracy", "psnr_truth")])
        return frame, edits[best : best + 1], best

    def _adapted(self, index: int, whole: bool):
        frame, edited, _ = self.root(index, whole)
        case = background_case(index) if whole else Case.of(index)
        training = partial(
            fit, source=frame, edited=edited, instruction=self.backbone.embed(instruction(case)), **TRAINING
        )
        return adapt(self.backbone, training)[0]

    def frames(self, case: Case, setting: Setting) -> Tensor:
        """[F, H, W, 3] in 0..1: the edited clip."""
        if setting.kind != "edit":
            frames = frames_of(case.source if setting.kind == "source" else case.target)
            return frames if setting.kind == "source" else self.backbone.decode(self.backbone.encode(frames))
        model = self.adapted(case.index, setting.whole) if setting.root == "adapted" else self.backbone
        seed = self.root(case.index, setting.whole)[2] if setting.root else 0
        latents = model.encode(frames_of(case.source))
        trajectory = add_noise(model, latents, model.embed(""), steps=STEPS, noise=setting.noise, seed=seed)
        text = model.embed(instruction(case))
        scales = {"guidance": setting.guidance, "image_guidance": IMAGE_GUIDANCE}
        return model.decode(edit(model, trajectory, text, plan=setting.plan(case), **scales))

    def row(self, case: Case, setting: Setting) -> dict:
        video = self.frames(case, setting).movedim(-1, 1)[None]
        figures = measure(video, case.source, case.target) | consistency(video, case.target)
        alpha = torch.maximum(world.sprite_alpha(case.source), world.sprite_alpha(case.target))
        away = 1 - F.max_pool2d(alpha.gt(0).float(), 5, stride=1, padding=2)[:, :, None]
        if setting.whole:  # which way stripes run is not said, so no sprite can be found against the true background
            figures = {"background_spread": figures["background_spread"]} | sample_accuracy(video, case.target)
        figures["psnr_kept"] = psnr(video, self.through_vae(case.index), away)
        return {"setting": setting.name, "clip": case.index} | {name: f.item() for name, f in figures.items()}


def frames_of(clips: world.Clips) -> Tensor:
    return world.render(clips)[0][0].movedim(1, -1)


def at_frame(clips: world.Clips, frame: int) -> world.Clips:
    return replace(clips, center=clips.center[:, frame : frame + 1])


def background_case(index: int) -> Case:
    """A held-out edit of the background's color and pattern. Its phase and direction are not said: many are right."""
    source = Case.of(index).source
    generator = torch.Generator().manual_seed(FIRST_SEED + index)
    return Case(index, source, world.edit(source, generator, ("background", "pattern")))


def instruction(case: Case) -> str:
    return world.instructions(case.source, case.target)[0]


def run(part: int, parts: int, clips: int, only: str) -> None:
    bench = Bench()
    done = {(r["setting"], r["clip"]) for r in read_rows()}
    # Setting by setting: a run that is stopped has whole rows, not half of every row.
    for setting in SETTINGS:
        for index in range(part, min(clips, setting.clips), parts):
            if (setting.name, index) not in done and re.search(only, setting.name):
                row = bench.row(setting.case(index), setting)
                with ROWS.open("a") as stream:
                    stream.write(json.dumps(row) + "\n")


def read_rows() -> list[dict]:
    return [json.loads(line) for line in ROWS.read_text().splitlines()] if ROWS.exists() else []


# ---- tables ---------------------------------------------------------------------------------------------------------

HEADER = """# VIA on the toy world

{clips} held-out edits (those of `toyworld_str`: a third change color, a third shape, a third both), 8 frames, model
`toyworld/instruct` in float32 on a CPU, {steps} steps from noise without an inversion, text guidance {guidance:g} where
nothing else is said (the most accurate on six other clips), image guidance {image:g}, {date}, commit {commit}.
Commands: `python -m weft.benchmarks.toyworld_via run`, then `table`. PSNR in dB; each cell is a mean [95 %
bootstrap interval of the mean over clips].

The spreads say how much sprite and background change from frame to frame, right or wrong; 0 is the same in all (defined
in `toyworld.measure.consistency`). Accuracy is the share of frames whose color and shape are right; background counts
pixels more than 2 px from either sprite, against the true background and against what the VAE makes of it: more than
that no edit can keep. Where no noise is named, all frames have the same. The first-frame row is the usual cross-frame
attention: gather-swap with a group of one. The root pair is the middle frame and the best of {candidates} edits of it,
chosen by the renderer's measures in the place of a human; the adapter is LoRA of rank 16, {training}.
The blend has the exact mask of the old and the new sprite, not dilated. What the edit still changes outside of it
comes from cells that the mask touches, which are edited whole and are 4 px wide, and from what the VAE's decoder makes
of them. Rows of fewer clips are not done yet, or took too long.

Edits of the background name its color and its pattern, and not which way stripes run or where they begin: many edits
are right, and per-frame editing finds several of them in one clip. This is what VIA is made for.
"""


def table() -> str:
    groups: dict[str, dict[int, dict]] = defaultdict(dict)
    for row in read_rows():
        groups[row["setting"]][row["clip"]] = row
    training = f"{TRAINING['steps']} steps, rate {TRAINING['rate']:g}"
    numbers = {"clips": CLIPS, "steps": STEPS, "guidance": GUIDANCE, "image": IMAGE_GUIDANCE, "training": training}
    lines = [HEADER.format(**numbers, date=date.today(), commit=_commit(), candidates=CANDIDATES)]
    for part in (False, True):
        lines += [f"\n## Edits of the {'background' if part else 'sprite'}\n", *_head(part)]
        for setting in SETTINGS:
            if setting.whole == part and (clips := groups.get(setting.name)):
                lines.append(_line(setting.name, list(clips.values()), part))
    return "\n".join([*lines, *_differences(groups), *long_table()]) + "\n"


def _differences(groups) -> list[str]:
    lines, known = [], {setting.name: setting for setting in SETTINGS}
    for base in map(known.get, BASES):
        found = []
        for s in SETTINGS:
            both = sorted(set(groups.get(s.name, ())) & set(groups.get(base.name, ())))
            if both and s != base and s.kind == "edit" and (s.whole, s.guidance) == (base.whole, base.guidance):
                pairs = [(groups[s.name][i], groups[base.name][i]) for i in both]
                differences = [{m: a[m] - b[m] for m in set(a) & set(b) & {*SHOWN, *SHOWN_WHOLE}} for a, b in pairs]
                found.append(_line(s.name, differences, s.whole, "+"))
        if found:
            lines += [f"\n## Differences to {base.name}; clip by clip\n", *_head(base.whole), *found]
    return lines


def _head(whole: bool) -> list[str]:
    shown = (SHOWN_WHOLE if whole else SHOWN).values()
    return ["| | n | " + " | ".join(h for h, _ in shown) + " |", "|---" * (len(shown) + 2) + "|"]


def _line(name: str, rows: list[dict], whole: bool, sign: str = "") -> str:
    shown = (SHOWN_WHOLE if whole else SHOWN).items()
    cells = [_cell([r[m] for r in rows if m in r], digits, sign) for m, (_, digits) in shown]
    return f"| {name} | {len(rows)} | " + " | ".join(cells) + " |"


def _cell(values: list[float], digits: int, sign: str = "") -> str:
    if not values:
        return ""
    low, high = bootstrap_interval(values)
    return f"{sum(values) / len(values):{sign}.{digits}f} [{low:{sign}.{digits}f}, {high:{sign}.{digits}f}]"


def _commit() -> str:
    command = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.strip() or "unknown"


def sheet(indices: tuple[int, ...] = (0, 1)) -> None:
    """Writes some clips under the settings that tell most as a picture."""
    told = (strong(EACH), strong(GATHERED), *map(whole, (EACH, SHARED, GATHERED, ADAPTED)))
    bench, rows, labels = Bench(), [], []
    for index in indices:
        rows.append(frames_of(Case.of(index).source))
        labels.append("source")
        for setting in (s for s in SETTINGS if s.name in {t.name for t in told}):
            case = setting.case(index)
            rows.append(bench.frames(case, setting))
            labels.append(f"{instruction(case)}: {setting.name.removeprefix(WHOLE)}")
    contact_sheet(rows, SHEET, 2, labels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("run", "table", "sheet"))
    parser.add_argument("--part", default="1/1", help="i/n: every n-th clip, from the i-th")
    parser.add_argument("--clips", type=int, default=CLIPS)
    parser.add_argument("--only", default="", help="settings whose name has this regular expression in it")
    arguments = parser.parse_args()
    if arguments.what == "run":
        part, parts = (int(n) for n in arguments.part.split("/"))
        run(part - 1, parts, arguments.clips, arguments.only)
    elif arguments.what == "table":
        TABLE.write_text(table())
    else:
        sheet()


if __name__ == "__main__":
    main()
