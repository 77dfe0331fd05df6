"""Edits of scenes with two things: one of two, both into different targets, remove, add, the background.

    python -m weft.benchmarks.toyworld_things run      # every setting on every clip; goes on where it stopped
    python -m weft.benchmarks.toyworld_things run --only motion    # only those of the image model with its adapter
    python -m weft.benchmarks.toyworld_things table    # rows -> benchmarks/results/toyworld_things.md
    python -m weft.benchmarks.toyworld_things sheet    # some clips -> toyworld_things.jpg

Rows are kept in benchmarks/results/toyworld_things.jsonl: one a setting and clip.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from ..backbones.diffusers.loading import load_backbone
from ..backbones.diffusers.motion import load_animatediff
from ..engine.edit import edit
from ..engine.inversion import invert
from ..engine.plan import PLAIN, EditPlan, Region
from ..engine.ports import Backbone
from ..methods.coupled_flow import CoupledFlow, coupled_edit
from ..methods.str_match import STRLatentOptimizer
from ..toyworld import scenes
from ..toyworld.measure_scenes import measure_scenes
from ..toyworld.report import contact_sheet
from ..toyworld.scenes import Scenes
from ..toyworld.steadiness import steadiness
from .cases import CLIPS, WEIGHTS, through_vae
from .rows import Rows, arguments, difference, head, line, origin

ROWS = Rows("toyworld_things")
FIRST_SEED = 70_000  # clips 100 and up are for choosing numbers; no table counts them
# Chosen on clips 100 to 103: guidance 4, a negative prompt of what goes, and masks wider by 8 pixels were worse.
STEPS, GUIDANCE = 10, 3.0
GROW = 3  # pixels, as a mask that is not wider leaves no room for a shape that is
COUPLED = CoupledFlow(start=1.0, source_guidance=1.0)
FEWER = 24  # clips of what is asked for in passing
SHOWN = {
    "count_right": ("things that are there", 2),
    "color_accuracy": ("color", 2),
    "shape_accuracy": ("shape", 2),
    "psnr_truth": ("PSNR to truth", 1),
    "psnr_same": ("PSNR of what stays", 1),
    "flicker": ("flicker", 1),
    "seconds": ("CPU s", 1),
}
STR_STEPS, STR_STRENGTH = 20, 0.5  # the strength is the toy video model's, see toyworld_str; not chosen anew
NOTHING, CEILING, WORDS, MASKED = "do nothing (the source)", "ceiling", "words alone", "inside a mask"
STR_MATCH = "STR-Match"
TITLES = {
    "one of two": "Change one of two",
    "both": "Change both, into different targets",
    "remove": "Remove one of two",
    "add": "Add a second one",
    "background": "Change the background",
}


@dataclass(frozen=True)
class Setting:
    """One row of a table."""

    name: str
    section: str  # of TITLES
    clips: int = CLIPS
    what: str = ""  # WORDS, MASKED or STR_MATCH
    model: str = "epsilon"  # of MODELS


def settings() -> list[Setting]:
    made = []
    for kind in TITLES:
        made += [Setting(name, kind, what=name) for name in (NOTHING, CEILING, WORDS, MASKED)]
        made += [Setting(f"{what}, motion", kind, what=what, model="motion") for what in (WORDS, MASKED)]
    return [*made, Setting(f"{STR_MATCH}, motion", "one of two", FEWER, STR_MATCH, "motion")]


@dataclass(frozen=True)
class Pair:
    """One clip and its true edit."""

    kind: str
    source: Scenes
    target: Scenes

    @classmethod
    def of(cls, kind: str, index: int) -> Pair:
        generator = torch.Generator().manual_seed(FIRST_SEED + index)
        return cls(kind, *scenes.draw_edits(kind, 1, generator))

    def mask(self, which: int) -> Tensor:
        """[F, H, W] wherever the old or the new sprite is, and `GROW` pixels more."""
        old, new = (scenes.visible(s)[0, which] > 0.5 for s in (self.source, self.target))
        return F.max_pool2d((old | new).float()[:, None], 2 * GROW + 1, stride=1, padding=GROW)[:, 0]

    @property
    def changed(self) -> list[int]:
        """The sprites that the edit touches."""
        return {"one of two": [0], "both": [0, 1], "remove": [1], "add": [1], "background": []}[self.kind]


def frames_of(scene: Scenes) -> Tensor:
    """[F, H, W, 3] in 0..1."""
    return scenes.render(scene)[0][0].movedim(1, -1)


MODELS = {
    "epsilon": lambda: load_backbone(WEIGHTS / "epsilon", name="toyworld/epsilon"),
    "motion": lambda: load_animatediff(WEIGHTS / "epsilon", WEIGHTS / "motion", name="toyworld/motion"),
}


class Bench:
    """Runs settings on pairs."""

    def __init__(self):
        self.backbone = cache(lambda model: MODELS[model]())

    def plan(self, pair: Pair, backbone: Backbone) -> EditPlan:
        """One region: the sprites that change, or all but the sprites; its prompt is the whole target, as prompts of
        each sprite alone made the other one vanish where they overlap."""
        prompt = backbone.text.embed(scenes.captions(pair.target)[0])
        if not pair.changed:
            sprites = (scenes.visible(pair.source)[0] > 0.5).any(0).float()
            return PLAIN.with_region(Region(prompt, mask=1 - sprites))
        return PLAIN.with_region(Region(prompt, mask=torch.stack([pair.mask(k) for k in pair.changed]).amax(0)))

    def frames(self, pair: Pair, setting: Setting) -> Tensor:
        """[F, H, W, 3] in 0..1: the edit."""
        backbone = self.backbone(setting.model)
        codec, embed = backbone.codec, backbone.text.embed
        clean = codec.encode(frames_of(pair.source))
        source, target = (embed(scenes.captions(s)[0]) for s in (pair.source, pair.target))
        if setting.what == STR_MATCH:
            trajectory = invert(backbone, clean, source, steps=STR_STEPS)
            plan = PLAIN.then(STRLatentOptimizer(strength=STR_STRENGTH))
            return codec.decode(edit(backbone, trajectory, target, guidance=GUIDANCE, plan=plan, negative=embed("")))
        plan = self.plan(pair, backbone) if setting.what == MASKED else PLAIN
        how = {"solver": COUPLED, "steps": STEPS, "guidance": GUIDANCE, "plan": plan}
        return codec.decode(coupled_edit(backbone, clean, source, target, **how))

    def row(self, setting: Setting, clip: int) -> dict[str, float]:
        pair = Pair.of(setting.section, clip)
        if setting.name == CEILING:
            return figures(through_vae(self.backbone("epsilon"), frames_of(pair.target)), pair)
        if setting.name == NOTHING:
            return figures(frames_of(pair.source), pair)
        start = time.process_time()
        frames = self.frames(pair, setting)
        return {"seconds": time.process_time() - start} | figures(frames, pair)


def figures(frames: Tensor, pair: Pair) -> dict[str, float]:
    measured = measure_scenes(frames.movedim(-1, 1)[None], pair.source, pair.target)
    measured["flicker"] = steadiness(frames.movedim(-1, 1)[None], pair.target)["flicker"]
    return {name: value.item() for name, value in measured.items() if not value.isnan().any()}


def table() -> str:
    numbers = {"clips": CLIPS, "seed": FIRST_SEED, "steps": STEPS, "guidance": GUIDANCE, "grow": GROW}
    numbers |= {"str_steps": STR_STEPS, "strength": STR_STRENGTH}
    groups, lines = ROWS.groups(), [HEADER.format(**numbers, **origin())]
    for kind, title in TITLES.items():
        made = [s for s in settings() if s.section == kind and (kind, s.name) in groups]
        lines += [f"\n## {title}\n", *head(SHOWN)]
        lines += [line(s.name, groups[kind, s.name].values(), SHOWN) for s in made]
        for what in (WORDS, MASKED):
            mine, base = (groups.get((kind, name), {}) for name in (f"{what}, motion", what))
            lines += difference(f"{what}: motion less frame by frame", mine, base, SHOWN)
    return "\n".join(lines) + "\n"


HEADER = """# Edits of scenes with two things

Up to {clips} held-out clips a kind, as `n` says (seeds {seed} and up, one each). Model `toyworld/epsilon`, an image
model that predicts epsilon and takes each frame by itself, and, where a row says motion, the same with its motion
adapter `toyworld/motion`; in float32 on a CPU. Coupled flow without an inversion, {steps} noise levels, guidance
{guidance:g}, the source's 1, an empty negative prompt; for STR-Match {str_steps} steps, strength {strength:g}
(the toy video model's), the same guidance and negative. {date}, commit {commit}.
Commands: `python -m weft.benchmarks.toyworld_things run`, then `table`. Each cell is a mean [95 % bootstrap interval of
the mean over clips]; of a difference, over the clips that both have. CPU seconds with encoding and decoding, in one
thread beside much other work. A mask is where the old or the new sprites are, grown by {grow} pixels; of a background
all but the sprites. Shape counts in frames where a thing is in full sight; what stays is all that the true edit leaves.
Flicker is how much a background pixel changes from one frame to the next, in 255ths; earlier rows do not have it.
"""


def sheet() -> None:
    """A clip of each kind: the source, every setting, the truth."""
    bench, rows, labels = Bench(), [], []
    for kind in TITLES:
        pair = Pair.of(kind, 0)
        made = {s.name: bench.frames(pair, s) for s in settings() if s.section == kind and s.what in (WORDS, MASKED)}
        shown = {"source": frames_of(pair.source), **made, "truth": frames_of(pair.target)}
        rows += [clip[::2] for clip in shown.values()]
        labels += [f"{kind}: {name}" for name in shown]
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
