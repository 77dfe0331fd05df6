"""STEM inversion on held-out toy clips: does it give the clip back, and does it make TokenFlow and FateZero better?

    python -m weft.benchmarks.toyworld_stem run      # every setting on every clip; goes on where it stopped
    python -m weft.benchmarks.toyworld_stem table    # rows -> benchmarks/results/toyworld_stem.md
    python -m weft.benchmarks.toyworld_stem sheet    # one clip as a picture: source, edits, truth

The clips are those of `toyworld_str`. A reconstruction inverts a clip and samples it again under its own prompt,
without guidance, with the same attention in both; an edit inverts it with one attention and samples it with an editor.
Rows are kept in benchmarks/results/toyworld_stem.jsonl, one a setting and clip, clip by clip: a run that is stopped has
the same clips in all settings. `run --part 1/2` does every second clip, for one process a core.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections import defaultdict
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

import torch
from torch import Tensor

from ..backbones.loading import load_backbone
from ..engine.inversion import invert
from ..engine.monitor import Recording
from ..engine.nouns import PLAIN, EditPlan
from ..engine.sampling import edit
from ..methods.evaluate import psnr
from ..methods.fate_zero import fate_zero
from ..methods.spatio_temporal import spatio_temporal_attention
from ..methods.stem import stem_attention
from ..methods.token_flow import token_flow
from ..toyworld import world
from ..toyworld.measure import measure
from ..toyworld.motion import warp_error
from .toyworld_str import CLIPS, FIRST_SEED, Case, _cell, _commit

ROOT = Path(__file__).resolve().parents[1]
ROWS = ROOT / "benchmarks" / "results" / "toyworld_stem.jsonl"
TABLE, SHEET = ROWS.with_suffix(".md"), ROWS.with_suffix(".jpg")
MODEL = ROOT / "toyworld" / "weights" / "image"
STEPS, GUIDANCE = 10, 4.0
FRAMES, CELLS = 8, 16 * 16  # of a toy clip
PAPER, WARM = "Reconstruction, the paper's inversion", "Reconstruction, warm start"
EDITS, WARM_EDITS = "Edits, the paper's inversion", "Edits, warm start"
FEWER = 8  # clips of the settings that matter less
RECONSTRUCTION = {  # measure -> (heading, digits)
    "psnr": ("PSNR to source", 2),
    "ssim": ("SSIM", 4),
    "psnr_vae": ("PSNR to the VAE's round trip", 2),
    "warp_error": ("warp error", 2),
    "noise_std": ("std of the noise", 2),
    "dead": ("dead bases", 2),
    "seconds": ("CPU s", 1),
}
EDITED = {
    "target_accuracy": ("target accuracy", 2),
    "color_accuracy": ("color", 2),
    "shape_accuracy": ("shape", 2),
    "psnr_truth": ("PSNR to truth", 2),
    "psnr_background": ("background", 2),
    "warp_error": ("warp error", 2),
    "seconds": ("CPU s", 1),
}


@dataclass(frozen=True)
class Setting:
    """One row of a table."""

    name: str
    section: str
    attention: str = ""  # of the inversion: "", "dense" or "stem"
    numbers: dict = field(default_factory=dict)  # of `stem_attention`
    editor: str = ""  # "plain", "token_flow", "fate_zero", "fate_zero_shared"; "" reconstructs
    convention: str = "paper"
    clips: int = CLIPS

    @property
    def key(self) -> tuple[str, str]:
        return self.section, self.name


def settings() -> list[Setting]:
    stem = [(16, 5), (64, 5), (256, 5), (64, 1), (64, 3)]
    found = [
        Setting("DDIM", PAPER),
        Setting("DDIM + spatio-temporal attention", PAPER, "dense"),
        *(Setting(f"STEM, K = {k}, R = {r}", PAPER, "stem", {"bases": k, "iterations": r}) for k, r in stem),
    ]
    ddim, k64 = ("DDIM", "", {}), ("STEM, K = 64", "stem", {"bases": 64})
    for editor, title in EDITORS.items():
        for name, attention, numbers in (ddim, k64):
            found.append(Setting(f"{title}, {name} inversion", EDITS, attention, numbers, editor))
    shared = "FateZero on shared bases (ours), STEM, K = 64 inversion"
    found.append(Setting(shared, EDITS, *k64[1:], "fate_zero_shared"))
    warm = {"convention": "warm_start", "clips": FEWER}
    for name, attention, numbers in (ddim, ("DDIM + spatio-temporal attention", "dense", {}), k64):
        found.append(Setting(name, WARM, attention, numbers, **warm))
    for editor, title in EDITORS.items():
        for name, attention, numbers in (ddim, k64):
            found.append(Setting(f"{title}, {name} inversion", WARM_EDITS, attention, numbers, editor, **warm))
    return found


EDITORS = {"plain": "plain edit", "token_flow": "TokenFlow", "fate_zero": "FateZero"}


class Bench:
    """Runs settings on cases; trajectories of the clip at hand are kept for the editors."""

    def __init__(self, model: Path = MODEL):
        self.backbone = load_backbone(model, name="toyworld/image")
        self.case, self.kept = -1, {}

    def inverted(self, case: Case, s: Setting):
        """(source frames, trajectory, CPU seconds, share of dead bases)"""
        if self.case != case.index:
            self.case, self.kept = case.index, {}
        numbers = {"iterations": 5, **s.numbers} if s.numbers else {}
        key = (s.attention, *sorted(numbers.items()), s.convention)
        if key not in self.kept:
            frames = world.render(case.source)[0][0].movedim(1, -1)
            latents, prompt = self.backbone.encode(frames), self.backbone.embed(world.captions(case.source)[0])
            log, start = Recording(), time.process_time()
            plan = self.attention(s)
            trajectory = invert(
                self.backbone, latents, prompt, steps=STEPS, convention=s.convention, plan=plan, monitor=log
            )
            dead = [r["dead_bases"] for r in log.records]
            seconds = time.process_time() - start
            self.kept[key] = frames, trajectory, seconds, sum(dead) / len(dead) if dead else math.nan
        return self.kept[key]

    def attention(self, s: Setting) -> EditPlan:
        if s.attention == "dense":
            return spatio_temporal_attention(PLAIN)
        return stem_attention(PLAIN, **s.numbers) if s.attention == "stem" else PLAIN

    def editor(self, case: Case, s: Setting) -> EditPlan:
        if s.editor == "token_flow":
            return token_flow(PLAIN, batch=FRAMES // 2, feature_steps=STEPS * 4 // 5, attention_steps=STEPS // 2)
        words = changed_words(case)
        if s.editor == "fate_zero":
            return fate_zero(PLAIN, words=words, key_frames="own")
        if s.editor == "fate_zero_shared":
            return fate_zero(stem_attention(PLAIN, shared=True, **s.numbers), words=words, key_frames="own")
        return PLAIN

    def frames(self, case: Case, s: Setting) -> Tensor:
        """[F, H, W, 3] in 0..1: the clip given back, or edited."""
        _, trajectory, _, _ = self.inverted(case, s)
        if not s.editor:
            latents = edit(self.backbone, trajectory, trajectory.prompt, plan=self.attention(s), guidance=1)
        else:
            positive, negative = self.backbone.embed(world.captions(case.target)[0]), self.backbone.embed("")
            plan = self.editor(case, s)
            latents = edit(self.backbone, trajectory, positive, negative=negative, plan=plan, guidance=GUIDANCE)
        return self.backbone.decode(latents)

    def row(self, case: Case, s: Setting) -> dict:
        from torchmetrics.functional.image import structural_similarity_index_measure as ssim

        source, trajectory, seconds, dead = self.inverted(case, s)
        start = time.process_time()
        frames = self.frames(case, s)
        seconds += time.process_time() - start
        video = frames.movedim(-1, 1)
        if s.editor:
            figures = {name: value.item() for name, value in measure(video[None], case.source, case.target).items()}
            figures["warp_error"] = warp_error(video[None], case.target).item()
        else:
            vae = self.backbone.decode(self.backbone.unscale(trajectory.latents[0]))
            figures = {
                "psnr": psnr(frames, source),
                "psnr_vae": psnr(frames, vae),
                "ssim": ssim(video, source.movedim(-1, 1), data_range=1.0).item(),
                "warp_error": warp_error(video[None], case.source).item(),
                "noise_std": trajectory.noise_std,
                "dead": dead,
            }
        figures["seconds"] = seconds
        names = {"section": s.section, "setting": s.name, "clip": case.index}
        return names | {name: round(value, 6) for name, value in figures.items()}


def changed_words(case: Case) -> tuple[str, ...]:
    """Words of the source's caption that the edit replaces."""
    old, new = (world.captions(clips)[0].split() for clips in (case.source, case.target))
    return tuple(a for a, b in zip(old, new) if a != b)


def run(part: int, parts: int, clips: int, model: Path, only: str) -> None:
    bench = Bench(model)
    done = {(r["section"], r["setting"], r["clip"]) for r in read_rows()}
    for index in range(part, clips, parts):
        for s in settings():
            if index < s.clips and (*s.key, index) not in done and only in f"{s.section}: {s.name}":
                with ROWS.open("a") as stream:
                    stream.write(json.dumps(bench.row(Case.of(index), s)) + "\n")


def read_rows() -> list[dict]:
    return [json.loads(line) for line in ROWS.read_text().splitlines()] if ROWS.exists() else []


def table() -> str:
    groups: dict[tuple[str, str], dict[int, dict]] = defaultdict(dict)
    for row in read_rows():
        groups[row["section"], row["setting"]][row["clip"]] = row
    header = HEADER.format(date=date.today(), commit=_commit(), clips=CLIPS, seed=FIRST_SEED, steps=STEPS)
    lines = [header]
    for section in dict.fromkeys(s.section for s in settings() if s.key in groups):
        shown = RECONSTRUCTION if section in (PAPER, WARM) else EDITED
        cost = section == PAPER
        heads = [h for h, _ in shown.values()] + ["GFLOP a step"] * cost
        lines += [f"\n## {section}\n", "| | n | " + " | ".join(heads) + " |", "|---" * (len(heads) + 2) + "|"]
        for s in (s for s in settings() if s.section == section and s.key in groups):
            rows = groups[s.key].values()
            cells = [_mean(torch.tensor([r[m] for r in rows]), d) for m, (_, d) in shown.items()]
            lines.append(f"| {s.name} | {len(rows)} | " + " | ".join(cells + [f"{gflop(s):.2f}"] * cost) + " |")
    lines += ["\n## STEM against DDIM, clip by clip\n", *differences(groups)]
    return "\n".join(lines) + "\n"


HEADER = """# STEM inversion on the toy world

Held-out toy clips (the {clips} of `toyworld_str`, seeds {seed} and up), model `toyworld/image` in float32 on a CPU,
{steps} steps, {date}, commit {commit}. Commands: `python -m weft.benchmarks.toyworld_stem run`, then `table`. PSNR in
dB; warp error in levels of 255 along the exact motion. Each cell is a mean [95 % bootstrap interval of the mean over
clips], CPU seconds those of inversion and sampling of one clip.

The papers invert models that predict epsilon by evaluating the network on the cleaner latents. This model predicts v,
for which that inversion is poor: its noise has too small a standard deviation. Warm start is the inversion that is the
default here. A reconstruction samples with the attention that the clip was inverted with. GFLOP a step:
self-attention of one evaluation of a clip, counted from the formulas (2 a multiply-add), not measured.

Edits: a third of the clips changes color, a third shape, a third both; guidance 4, empty negative prompt. TokenFlow
takes 4 frames a keyframe and injects features in 8 and attention in 5 of the 10 steps. FateZero is given the words that
change, and its frames attend to themselves. Settings that matter less run on fewer clips (n).

How to read it: where the inversion is poor, the bases make it far better, and every editor with it. 16 bases or a
single round do nearly as well, and dense attention over all frames does not help; which suggests that it is coarse
attention that steadies such an inversion, rather than a faithful summary of the clip. With warm start, plain DDIM
leaves nothing to repair, and the editors are no better off with the bases.

Not done: a real clip. None is shipped, and the toy world's VAE knows the toy world only."""


def gflop(s: Setting) -> float:
    """Self-attention of one evaluation of a toy clip."""
    total = 0.0
    for tokens, width, layers in LAYERS:
        n = FRAMES * tokens
        if s.attention == "stem":
            k, r = min(s.numbers["bases"], n // 2), s.numbers.get("iterations", 5)
            products = n * k * (2 * r + 2) + 2 * n * k  # E and M r times, values once more; queries to bases
        else:
            products = 2 * n * (n if s.attention == "dense" else tokens)
        total += 2 * products * width * layers / 1e9
    return total


LAYERS = ((CELLS, 32, 3), (CELLS // 4, 64, 4))  # tokens of a frame, width, how many


def differences(groups) -> list[str]:
    lines = ["| | n | PSNR to source or truth | SSIM or accuracy | warp error |", "|---|---|---|---|---|"]
    for s in settings():
        editor = s.editor.removesuffix("_shared")
        base = next(b for b in settings() if (b.section, b.editor, b.attention) == (s.section, editor, ""))
        mine, theirs = groups.get(s.key, {}), groups.get(base.key, {})
        both = sorted(set(mine) & set(theirs))
        if both and s.attention:
            measures = ("psnr_truth", "target_accuracy") if s.editor else ("psnr", "ssim")
            cells = [
                _cell(torch.tensor([mine[i][m] - theirs[i][m] for i in both]), 3, "+")
                for m in (*measures, "warp_error")
            ]
            where = " (warm start)" if s.convention == "warm_start" else ""
            lines.append(f"| {s.name}{where} | {len(both)} | " + " | ".join(cells) + " |")
    return lines


def _mean(values: Tensor, digits: int) -> str:
    return "" if values.isnan().any() else _cell(values, digits)


def sheet(index: int, model: Path) -> None:
    """Rows: source; plain edit, TokenFlow, FateZero, each after a STEM inversion; truth. Every second frame."""
    from PIL import Image

    bench, case = Bench(model), Case.of(index)
    rows = [world.render(case.source)[0][0].movedim(1, -1)]
    rows += [bench.frames(case, s) for s in settings() if s.section == EDITS and s.editor in EDITORS and s.numbers]
    rows.append(world.render(case.target)[0][0].movedim(1, -1))
    picture = torch.cat([torch.cat(list(r[::2]), 1) for r in rows]).clamp(0, 1)
    grown = picture.repeat_interleave(2, 0).repeat_interleave(2, 1)
    Image.fromarray((grown * 255).round().byte().numpy()).save(SHEET, quality=90)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "table", "sheet"))
    parser.add_argument("--part", default="1/1", help="i/n: every n-th clip, from the i-th")
    parser.add_argument("--clips", type=int, default=CLIPS)
    parser.add_argument("--clip", type=int, default=0, help="of the sheet")
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--only", default="", help="settings whose 'section: name' contains this")
    arguments = parser.parse_args()
    if arguments.what == "run":
        part, parts = (int(n) for n in arguments.part.split("/"))
        run(part - 1, parts, arguments.clips, arguments.model, arguments.only)
    elif arguments.what == "sheet":
        sheet(arguments.clip, arguments.model)
    else:
        TABLE.write_text(table())


if __name__ == "__main__":
    main()
