"""Two edits of one clip, the sprite and the background, into different targets: one run with regions against two runs.

    python -m weft.benchmarks.toyworld_regions run      # every setting on every clip; goes on where it stopped
    python -m weft.benchmarks.toyworld_regions table    # rows -> benchmarks/results/toyworld_regions.md
    python -m weft.benchmarks.toyworld_regions sheet    # some clips -> toyworld_regions.jpg

Rows are kept in benchmarks/results/toyworld_regions.jsonl: one a setting and clip.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..backbones.diffusers.loading import load_backbone
from ..engine.edit import edit
from ..engine.inversion import invert
from ..engine.plan import PLAIN, EditPlan, Region
from ..engine.words import Prompt
from ..methods.coupled_flow import CoupledFlow, coupled_edit
from ..toyworld import world
from ..toyworld.measure import measure, sample_accuracy
from ..toyworld.report import contact_sheet
from .cases import CLIPS, FIRST_SEED, WEIGHTS, Case, frames_of, through_vae
from .rows import Rows, arguments, difference, head, line, origin

ROWS = Rows("toyworld_regions")
STEPS, GUIDANCE = 24, 4.0
GROW = 8  # pixels, two latent cells: in a mask that fits, this model cuts off what it draws beside it
COUPLED = CoupledFlow(start=0.8, source_guidance=1.0)
SHOWN = {
    "target_accuracy": ("sprite accuracy", 2),
    "background_accuracy": ("background color", 2),
    "pattern_accuracy": ("pattern", 2),
    "psnr_truth": ("PSNR to truth", 2),
    "centroid_error_px": ("centroid px", 2),
    "seconds": ("CPU s", 1),
}
TWICE, ONCE, WORDS = "two runs, one after the other", "one run, two regions", "one run, one prompt for both"
ENGINES = {"coupled": "coupled flow", "sampled": "inverted and sampled"}


@dataclass(frozen=True)
class Setting:
    """One row of a table."""

    name: str
    section: str
    clips: int = CLIPS


def settings() -> list[Setting]:
    edges = [Setting(name, ENGINES["coupled"]) for name in ("do nothing (the source)", "ceiling")]
    return edges + [Setting(name, engine) for engine in ENGINES.values() for name in (TWICE, ONCE, WORDS)]


@dataclass(frozen=True)
class Double:
    """One clip with two edits: of its sprite, and of its background's color."""

    source: world.Clips
    sprite: world.Clips  # the sprite changed
    ground: world.Clips  # the background changed
    both: world.Clips
    mask: Tensor  # [F, H, W] wherever the old or the new sprite is, and `GROW` pixels more
    sprite_now: Tensor  # [F, H, W] wherever the new one is

    @classmethod
    def of(cls, index: int) -> Double:
        case = Case.of(index)
        generator = torch.Generator().manual_seed(FIRST_SEED + index)
        ground = world.edit(case.source, generator, ("background",))
        both = world.edit(case.target, generator.manual_seed(FIRST_SEED + index), ("background",))
        sprite_now = (world.sprite_alpha(case.target)[0] > 0.5).float()
        grown = F.max_pool2d(case.mask[:, None], 2 * GROW + 1, stride=1, padding=GROW)[:, 0]
        return cls(case.source, case.target, ground, both, grown, sprite_now)


class Bench:
    """Runs settings on cases."""

    def __init__(self):
        self.backbone = load_backbone(WEIGHTS / "video", name="toyworld/video")

    def prompt(self, clips: world.Clips) -> Prompt:
        return self.backbone.text.embed(world.captions(clips)[0])

    def run(self, engine: str, latents: Tensor, source: Prompt, target: Prompt, plan: EditPlan) -> Tensor:
        negative = self.backbone.text.embed("")
        if engine == ENGINES["coupled"]:
            how = {"solver": COUPLED, "steps": STEPS, "guidance": GUIDANCE, "plan": plan}
            return coupled_edit(self.backbone, latents, source, target, negative=negative, **how)
        trajectory = invert(self.backbone, latents, source, steps=STEPS)
        return edit(self.backbone, trajectory, target, negative=negative, guidance=GUIDANCE, plan=plan)

    def frames(self, double: Double, setting: Setting) -> Tensor:
        """[F, H, W, 3] in 0..1: the clip with both edits."""
        codec, source = self.backbone.codec, self.prompt(double.source)
        clean = codec.encode(frames_of(double.source))
        sprite, ground, both = (self.prompt(c) for c in (double.sprite, double.ground, double.both))
        if setting.name == ONCE:
            plan = PLAIN.with_region(Region(both, mask=double.mask)).with_region(Region(ground))
            return codec.decode(self.run(setting.section, clean, source, both, plan))
        if setting.name == WORDS:
            return codec.decode(self.run(setting.section, clean, source, both, PLAIN))
        first = EditPlan(regions=(Region(sprite, mask=double.mask),))
        half = codec.encode(codec.decode(self.run(setting.section, clean, source, sprite, first)))  # as a user would
        second = EditPlan(regions=(Region(both, mask=1 - double.sprite_now),))
        return codec.decode(self.run(setting.section, half, sprite, both, second))

    def row(self, setting: Setting, clip: int) -> dict[str, float]:
        double = Double.of(clip)
        if setting.name == "ceiling":
            return figures(through_vae(self.backbone, frames_of(double.both)), double)
        if setting.name.startswith("do nothing"):
            return figures(frames_of(double.source), double)
        start = time.process_time()
        frames = self.frames(double, setting)
        return {"seconds": time.process_time() - start} | figures(frames, double)


def figures(frames: Tensor, double: Double) -> dict[str, float]:
    video = frames.movedim(-1, 1)[None]
    measured = measure(video, double.source, double.both)
    seen = sample_accuracy(video, double.both)
    measured |= {name: seen[name] for name in ("background_accuracy", "pattern_accuracy")}
    return {name: value.item() for name, value in measured.items()}


def table() -> str:
    groups, lines = ROWS.groups(), [HEADER.format(clips=CLIPS, seed=FIRST_SEED, steps=STEPS, grow=GROW, **origin())]
    for section in ENGINES.values():
        made = [s for s in settings() if s.section == section and (section, s.name) in groups]
        lines += [f"\n## {section.capitalize()}\n", *head(SHOWN)]
        lines += [line(s.name, groups[section, s.name].values(), SHOWN) for s in made]
        once, twice = (groups.get((section, name), {}) for name in (ONCE, TWICE))
        lines += ["", "One run less two, clip by clip:", "", *head(SHOWN), *difference(ONCE, once, twice, SHOWN)]
        both = set(once) & set(twice)
        if both:
            ratio = sum(once[c]["seconds"] for c in both) / sum(twice[c]["seconds"] for c in both)
            lines += ["", f"Time of one run over that of two: {ratio:.2f} ({len(both)} clips)."]
    return "\n".join(lines) + "\n"


HEADER = """# Two edits at once on the toy world

{clips} held-out clips (seeds {seed} and up, one each): the sprite changes color, shape or both as in the other tables,
and the background its color. Model `toyworld/video` in float32 on a CPU, {steps} noise levels, guidance 4, empty
negative prompt, {date}, commit {commit}. Commands: `python -m weft.benchmarks.toyworld_regions run`, then `table`. PSNR
in dB; each cell is a mean [95 % bootstrap interval of the mean over clips]. CPU seconds with encoding, inversion where
there is one, and decoding; a clip's settings are made one after the other by one process.

Two runs: the sprite inside a mask of the old and the new one grown by {grow} pixels, then, from the first run's frames,
all but the new sprite. One run: the same first mask with a prompt of both changes, as both are seen in it, and the rest
with a prompt of the new background alone. One prompt: both changes in words, no regions.
"""


def sheet() -> None:
    """Two clips: the source, every setting, the truth."""
    bench, rows, labels = Bench(), [], []
    for index in (0, 1):
        double = Double.of(index)
        shown = {"source": frames_of(double.source)}
        for setting in settings()[2:]:
            shown[f"{setting.section}, {setting.name}"] = bench.frames(double, setting)
        shown["truth"] = frames_of(double.both)
        rows += [clip[::2] for clip in shown.values()]
        labels += [f"clip {index}: {name}" for name in shown]
    contact_sheet(rows, ROWS.file.with_suffix(".jpg"), 2, labels)


def main() -> None:
    work = arguments(__doc__, "sheet")
    if work.what == "run":
        ROWS.fill(settings(), Bench().row, work)
    elif work.what == "sheet":
        sheet()
    else:
        ROWS.table.write_text(table())


if __name__ == "__main__":
    main()
