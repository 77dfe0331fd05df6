"""Editing without inversion on held-out toy clips: coupled flow against the plain edit and STR-Match.

    python -m weft.benchmarks.toyworld_coupled run      # every setting on every clip; goes on where it stopped
    python -m weft.benchmarks.toyworld_coupled table    # rows -> benchmarks/results/toyworld_coupled.md
    python -m weft.benchmarks.toyworld_coupled sheet    # some clips under the main settings -> toyworld_coupled.jpg

Rows are kept in benchmarks/results/toyworld_coupled.jsonl: one a setting and clip.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from torch import Tensor

from ..backbones.diffusers.loading import load_backbone
from ..engine.edit import edit
from ..engine.inversion import invert
from ..engine.plan import Control, EditPlan
from ..methods.coupled_flow import CoupledFlow, coupled_edit
from ..methods.injection import FeatureInjection
from ..methods.latent_blend import LatentBlend
from ..methods.str_match import STRLatentOptimizer
from ..toyworld import world
from ..toyworld.measure import measure
from ..toyworld.report import contact_sheet
from .cases import CLIPS, FIRST_SEED, WEIGHTS, Case, frames_of, through_vae
from .rows import Rows, arguments, difference, head, line, origin

ROWS = Rows("toyworld_coupled")
STEPS, GUIDANCE = 24, 4.0
STR = STRLatentOptimizer(strength=0.5)
INJECTION = FeatureInjection(10, 10)
SHOWN = {
    "target_accuracy": ("target accuracy", 2),
    "psnr_truth": ("PSNR to truth", 2),
    "psnr_background": ("background", 2),
    "centroid_error_px": ("centroid px", 2),
    "velocity_error_px": ("velocity px", 2),
    "seconds": ("CPU s", 1),
}
ALL = "edits of the sprite"
FEWER = 16  # clips of what is asked for in passing


@dataclass(frozen=True)
class Setting:
    """One row of the table."""

    name: str
    solver: CoupledFlow | None = None  # None: inverted and sampled
    controls: tuple[Control, ...] = ()
    mask: bool = False
    negative: str = "empty"  # or "source": the source's prompt
    guidance: float = GUIDANCE
    kind: str = "edit"  # or "source": do nothing; "ceiling": the true edit through the VAE
    clips: int = CLIPS
    section: str = ALL


# Chosen on clips 100 to 104, which no table counts: a smaller start and no guidance of the source.
OURS = CoupledFlow(start=0.7, source_guidance=1.0)


def settings() -> list[Setting]:
    """In the order of the table; what is compared with the plain edit comes after it."""
    pulled = CoupledFlow(start=0.7, source_guidance=1.0, pull=0.01)
    align = CoupledFlow(start=1.0, source_guidance=1.0, pull=0.01)
    return [
        Setting("do nothing (the source)", kind="source"),
        Setting("ceiling (the true edit through the VAE)", kind="ceiling"),
        Setting(PLAIN_NAME),
        Setting("STR-Match", controls=(STR,)),
        Setting("coupled", OURS),
        Setting("coupled + pull 0.01", pulled),
        Setting("coupled + STR", OURS, (STR,)),
        Setting("coupled + mask", OURS, mask=True),
        Setting("coupled, 0.8 of the levels, source guidance 1.5", CoupledFlow(0.8, 1.5), clips=FEWER),
        Setting("coupled + injection", OURS, (INJECTION,), clips=FEWER),
        Setting("FlowAlign's numbers", align, negative="source", guidance=13.5, clips=FEWER),
        Setting("plain + mask", mask=True, clips=FEWER),
        Setting("STR-Match + mask", controls=(STR,), mask=True, clips=FEWER),
        Setting("coupled + mask + STR", OURS, (STR,), mask=True, clips=FEWER),
    ]


PLAIN_NAME = "plain (inverted, DDIM)"
SEEN = (PLAIN_NAME, "STR-Match", "coupled", "coupled + STR", "coupled + mask")


class Bench:
    """Runs settings on cases. Every figure of time counts the inversion, where there is one, and not the VAE."""

    def __init__(self):
        self.backbone = load_backbone(WEIGHTS / "video", name="toyworld/video")

    def latents(self, case: Case, setting: Setting) -> Tensor:
        text = self.backbone.text.embed
        source, target = (text(world.captions(clips)[0]) for clips in (case.source, case.target))
        clean = self.backbone.codec.encode(frames_of(case.source))
        negative = source if setting.negative == "source" else text("")
        plan = EditPlan(setting.controls)
        how = {"negative": negative, "guidance": setting.guidance}
        if setting.solver is not None:
            mask = case.mask if setting.mask else None
            return coupled_edit(
                self.backbone, clean, source, target, solver=setting.solver, steps=STEPS, plan=plan, mask=mask, **how
            )
        plan = plan.then(LatentBlend(case.mask)) if setting.mask else plan
        return edit(self.backbone, invert(self.backbone, clean, source, steps=STEPS), target, plan=plan, **how)

    def frames(self, case: Case, setting: Setting) -> tuple[Tensor, float | None]:
        """([F, H, W, 3] in 0..1: the edited clip, CPU seconds of the edit)"""
        if setting.kind == "source":
            return frames_of(case.source), None
        if setting.kind == "ceiling":
            return through_vae(self.backbone, frames_of(case.target)), None
        start = time.process_time()
        latents = self.latents(case, setting)
        return self.backbone.codec.decode(latents), time.process_time() - start

    def row(self, setting: Setting, clip: int) -> dict[str, float]:
        case = Case.of(clip)
        frames, seconds = self.frames(case, setting)
        figures = measure(frames.movedim(-1, 1)[None], case.source, case.target)
        return {n: v.item() for n, v in figures.items()} | ({} if seconds is None else {"seconds": seconds})


def table() -> str:
    groups, lines = ROWS.groups(), [HEADER.format(clips=CLIPS, seed=FIRST_SEED, steps=STEPS, **origin()), *head(SHOWN)]
    made = [s for s in settings() if (ALL, s.name) in groups]
    lines += [line(s.name, groups[ALL, s.name].values(), SHOWN) for s in made]
    lines += ["\n## Differences to the plain edit, clip by clip\n", *head(SHOWN)]
    for s in made:
        if s.kind == "edit" and s.name != PLAIN_NAME:
            lines += difference(s.name, groups[ALL, s.name], groups[ALL, PLAIN_NAME], SHOWN)
    return "\n".join(lines) + "\n"


HEADER = """# Editing without inversion on the toy world

{clips} held-out edits (seeds {seed} and up, one each; a third change color, a third shape, a third both; `n` says where
there are fewer), model `toyworld/video` (predicts v) in float32 on a CPU, {steps} noise levels, guidance 4 and an empty
negative prompt but where said, {date}, commit {commit}. Commands: `python -m weft.benchmarks.toyworld_coupled run`,
then `table`. PSNR in dB; each cell is a mean [95 % bootstrap interval of the mean over clips]. CPU seconds of one edit
with its inversion, where it has one, and decoding, in one thread on a machine with other work.

"Coupled" is FlowEdit's loop (Coupled Edit), with 0.7 of the levels and no guidance of the source, chosen on clips that
are not among these. The mask is the exact one. "FlowAlign's numbers": all levels, the source's prompt as negative,
guidance 13.5, pull 0.01; it guides between the two prompts, under which this small model overshoots, as
`toyworld_str.md` shows for the source's prompt.
"""


def sheet() -> None:
    """Three clips: the source, the settings of `SEEN`, the truth."""
    bench, by_name = Bench(), {s.name: s for s in settings()}
    rows, labels = [], []
    for index in (0, 1, 2):
        case = Case.of(index)
        shown = {"source": frames_of(case.source)}
        shown |= {name: bench.frames(case, by_name[name])[0] for name in SEEN} | {"truth": frames_of(case.target)}
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
