"""VIA on held-out toy clips whose right edit is known: do frames agree, and is the background kept?

    python -m weft.benchmarks.toyworld_via run      # every setting on every clip; goes on where it stopped
    python -m weft.benchmarks.toyworld_via table    # rows -> benchmarks/results/toyworld_via.md
    python -m weft.benchmarks.toyworld_via sheet    # some clips under every setting -> toyworld_via.jpg

Rows are kept in benchmarks/results/toyworld_via.jsonl: one a setting and clip. `toyworld_via_long` measures a minute of
video, and its table is added.

It is long because a table is its settings, its run and its text.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache, partial

import torch
import torch.nn.functional as F
from torch import Tensor

from ..backbones.diffusers.loading import load_backbone
from ..backbones.lora import adapt
from ..engine.edit import edit
from ..engine.inversion import add_noise
from ..engine.plan import PLAIN, EditPlan
from ..engine.ports import Backbone
from ..methods.adaptation import fit
from ..methods.candidates import candidates
from ..methods.gather_swap import GatherSwap
from ..methods.latent_blend import LatentBlend
from ..toyworld import world
from ..toyworld.measure import consistency, measure, psnr, sample_accuracy
from ..toyworld.report import contact_sheet
from .cases import CLIPS, WEIGHTS, Case, frames_of, through_vae
from .rows import Rows, arguments, difference, head, line, origin
from .toyworld_via_long import long_table

ROWS = Rows("toyworld_via")
STEPS = 10
GUIDANCE, IMAGE_GUIDANCE = 2.0, 1.5  # chosen on clips 100 to 105, which no table counts
SPRITE, GROUND = "edits of the sprite", "edits of the background"
SHOWN = {  # section -> {measure: (heading, digits)}
    SPRITE: {
        "color_spread": ("color spread", 3),
        "shape_spread": ("shape spread", 3),
        "background_spread": ("background spread", 3),
        "target_accuracy": ("target accuracy", 2),
        "psnr_background": ("background", 2),
        "psnr_kept": ("background to the VAE's", 2),
        "psnr_truth": ("PSNR to truth", 2),
        "centroid_error_px": ("centroid px", 2),
    },
    GROUND: {
        "background_spread": ("background spread", 3),
        "background_accuracy": ("background's color", 2),
        "pattern_accuracy": ("its pattern", 2),
        "target_accuracy": ("sprite as it was", 2),
    },
}
CANDIDATES = 4
TRAINING = {"steps": 100, "rate": 1e-4}  # the node's defaults; on clips 100 to 105, more trained away the background


@dataclass(frozen=True)
class Setting:
    """One row of the table."""

    name: str
    section: str = SPRITE
    noise: str = "shared"
    group: int = 0  # frames gathered from; 0: gather-swap is not used
    blend: str = ""  # schedule of the latent blend
    root: str = ""  # of the root pair: "seed" takes its noise only, "adapted" trains on it too
    kind: str = "edit"  # or "source": do nothing; "ceiling": the true edit through the VAE
    clips: int = CLIPS
    guidance: float = GUIDANCE

    def plan(self, case: Case) -> EditPlan:
        plan = PLAIN.then(GatherSwap(group=self.group)) if self.group else PLAIN
        return plan.then(LatentBlend(case.mask, schedule=self.blend, dilate=0)) if self.blend else plan


PAPER = 7.5  # InstructPix2Pix's guidance, for want of VIA's
EACH, SHARED, GATHERED = "per frame, a noise each", "per frame, shared noise", "gather-swap, 4 frames"
ADAPTED = "gather-swap, test-time adaptation to the best"


def strong(name: str, **changes) -> Setting:
    return Setting(f"{name}, guidance {PAPER:g}", guidance=PAPER, **changes)


def whole(name: str, **changes) -> Setting:
    return Setting(name, GROUND, **changes)


BLENDS = ("hard", "shrink", "paper_ramp")
SETTINGS = [
    Setting("do nothing (the source)", kind="source"),
    Setting("ceiling (the true edit through the VAE)", kind="ceiling"),
    strong(EACH, noise="per_frame"),
    strong(SHARED),
    strong("cross-frame attention to the first frame", group=1),
    strong(GATHERED, group=4),
    *(strong(f"shared noise + blend, {schedule}", blend=schedule) for schedule in BLENDS),
    *(strong(f"gather-swap + blend, {schedule}", group=4, blend=schedule) for schedule in ("hard", "paper_ramp")),
    strong("gather-swap, the best of 4 seeds", group=4, root="seed"),
    strong(ADAPTED, group=4, root="adapted"),
    strong("per frame, a noise each, test-time adaptation", noise="per_frame", root="adapted"),
    Setting(EACH, noise="per_frame"),
    Setting(SHARED),
    Setting(GATHERED, group=4),
    *(Setting(f"shared noise + blend, {schedule}", blend=schedule) for schedule in ("hard", "paper_ramp")),
    whole("the true edit through the VAE", kind="ceiling"),
    whole(EACH, noise="per_frame"),
    whole(SHARED),
    whole("cross-frame attention to the first frame", group=1),
    whole(GATHERED, group=4),
    whole("gather-swap, a noise each", noise="per_frame", group=4),
    whole(ADAPTED, group=4, root="adapted"),
    whole("per frame, a noise each, test-time adaptation", noise="per_frame", root="adapted"),
]
BASES = [s for s in SETTINGS if s.name.split(", guidance")[0] in (EACH, SHARED)]
SEEN = [
    s
    for s in SETTINGS
    if s.name in (strong(EACH).name, strong(GATHERED).name)
    or (s.section == GROUND and s.name in (EACH, SHARED, GATHERED, ADAPTED))
]


class Bench:
    """Runs settings on cases."""

    def __init__(self):
        self.backbone = load_backbone(WEIGHTS / "instruct", name="toyworld/instruct")
        self.adapted = lru_cache(maxsize=4)(self._adapted)
        self.root = lru_cache(maxsize=64)(self._root)
        self.through_vae = lru_cache(maxsize=64)(self._through_vae)

    def _through_vae(self, index: int) -> Tensor:
        """[1, F, 3, H, W]: the source as the VAE gives it back, which is all that a blend can keep of it."""
        return through_vae(self.backbone, frames_of(Case.of(index).source)).movedim(-1, 1)[None]

    def _root(self, index: int, section: str) -> tuple[Tensor, Tensor, int]:
        """(frame, its best edit, its seed): of the middle frame, by the renderer's eye for the human's.

        The best is right in color and shape, and then nearest to the truth.
        """
        case = case_of(index, section)
        middle = case.source.center.shape[1] // 2
        frame = frames_of(case.source)[middle : middle + 1]
        text = self.backbone.text.embed(instruction(case))
        scales = {"guidance": GUIDANCE, "image_guidance": IMAGE_GUIDANCE}
        edits = candidates(self.backbone, frame, text, count=CANDIDATES, steps=STEPS, **scales)
        one = [at_frame(clips, middle) for clips in (case.source, case.target)]
        scored = [measure(e.movedim(-1, 0)[None, None], *one) for e in edits]
        best = max(range(CANDIDATES), key=lambda i: [scored[i][m].item() for m in ("target_accuracy", "psnr_truth")])
        return frame, edits[best : best + 1], best

    def _adapted(self, index: int, section: str) -> Backbone:
        frame, edited, _ = self.root(index, section)
        told = self.backbone.text.embed(instruction(case_of(index, section)))
        training = partial(fit, source=frame, edited=edited, instruction=told, **TRAINING)
        return adapt(self.backbone, training)[0]

    def frames(self, case: Case, setting: Setting) -> Tensor:
        """[F, H, W, 3] in 0..1: the edited clip."""
        if setting.kind != "edit":
            frames = frames_of(case.source if setting.kind == "source" else case.target)
            return frames if setting.kind == "source" else through_vae(self.backbone, frames)
        model = self.adapted(case.index, setting.section) if setting.root == "adapted" else self.backbone
        seed = self.root(case.index, setting.section)[2] if setting.root else 0
        latents = model.codec.encode(frames_of(case.source))
        trajectory = add_noise(model, latents, model.text.embed(""), steps=STEPS, noise=setting.noise, seed=seed)
        text = model.text.embed(instruction(case))
        scales = {"guidance": setting.guidance, "image_guidance": IMAGE_GUIDANCE}
        return model.codec.decode(edit(model, trajectory, text, plan=setting.plan(case), **scales))

    def row(self, setting: Setting, clip: int) -> dict[str, float]:
        case = case_of(clip, setting.section)
        video = self.frames(case, setting).movedim(-1, 1)[None]
        figures = measure(video, case.source, case.target) | consistency(video, case.target)
        alpha = torch.maximum(world.sprite_alpha(case.source), world.sprite_alpha(case.target))
        away = 1 - F.max_pool2d(alpha.gt(0).float(), 5, stride=1, padding=2)[:, :, None]
        if setting.section == GROUND:  # which way stripes run is not said, so no sprite is found against the true one
            figures = {"background_spread": figures["background_spread"]} | sample_accuracy(video, case.target)
        figures["psnr_kept"] = psnr(video, self.through_vae(clip), away)
        return {name: figure.item() for name, figure in figures.items()}


def case_of(index: int, section: str) -> Case:
    return Case.of_background(index) if section == GROUND else Case.of(index)


def at_frame(clips: world.Clips, frame: int) -> world.Clips:
    return replace(clips, center=clips.center[:, frame : frame + 1])


def instruction(case: Case) -> str:
    return world.instructions(case.source, case.target)[0]


# ---- tables ---------------------------------------------------------------------------------------------------------

HEADER = """# VIA on the toy world

{clips} held-out edits (`benchmarks/cases.py`: a third change color, a third shape, a third both), 8 frames, model
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
of them.

Edits of the background name its color and its pattern, and not which way stripes run or where they begin: many edits
are right, and per-frame editing finds several of them in one clip. This is what VIA is made for.

How to read it: one noise for all frames does much, gather-swap does the rest, where there is something to agree on.
The literal ramp of the blend wants a strong edit: at guidance 7.5 it keeps most of the background at the same accuracy,
at 2 it leaves the edit half done. The adapter learns what to make of the thing (more frames are right) and forgets a
little of the rest (the background). A pattern's place it cannot learn, as every training pair is moved and turned."""


def table() -> str:
    training = f"{TRAINING['steps']} steps, rate {TRAINING['rate']:g}"
    numbers = {"clips": CLIPS, "steps": STEPS, "guidance": GUIDANCE, "image": IMAGE_GUIDANCE, "training": training}
    groups, lines = ROWS.groups(), [HEADER.format(**numbers, candidates=CANDIDATES, **origin())]
    for section, shown in SHOWN.items():
        rows = [s for s in SETTINGS if s.section == section and (section, s.name) in groups]
        lines += [f"\n## {section.capitalize()}\n", *head(shown)]
        lines += [line(s.name, groups[section, s.name].values(), shown) for s in rows]
        for base in (b for b in BASES if b.section == section):
            lines += [f'\nDifferences to "{base.name}", clip by clip:\n', *head(shown)]
            for s in (s for s in rows if s != base and s.kind == "edit" and s.guidance == base.guidance):
                lines += difference(s.name, groups[section, s.name], groups[section, base.name], shown)
    return "\n".join([*lines, *long_table()]) + "\n"


def sheet(indices: tuple[int, ...] = (0, 1)) -> None:
    """Some clips under the settings that tell most."""
    bench, rows, labels = Bench(), [], []
    for index in indices:
        rows.append(frames_of(Case.of(index).source))
        labels.append("source")
        for setting in SEEN:
            case = case_of(index, setting.section)
            rows.append(bench.frames(case, setting))
            labels.append(f"{instruction(case)}: {setting.name}")
    contact_sheet(rows, ROWS.file.with_suffix(".jpg"), 2, labels)


def main() -> None:
    work = arguments(__doc__, "sheet", order="setting")
    if work.what == "run":
        ROWS.fill(SETTINGS, Bench().row, work)
    elif work.what == "table":
        ROWS.table.write_text(table())
    else:
        sheet()


if __name__ == "__main__":
    main()
