"""COVE on held-out toy clips: are its correspondences right, and does attention along them steady an edit?

    python -m weft.benchmarks.toyworld_cove run      # every setting on every clip; goes on where it stopped
    python -m weft.benchmarks.toyworld_cove table    # rows -> benchmarks/results/toyworld_cove.md
    python -m weft.benchmarks.toyworld_cove sheet    # some clips under the main settings -> toyworld_cove.jpg

Rows are kept in benchmarks/results/toyworld_cove.jsonl: one a setting and clip.

It is long because a table is its settings, its run and its text.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import product

import torch.nn.functional as F
from torch import Tensor

from ..backbones.diffusers.loading import load_backbone
from ..engine.edit import edit
from ..engine.inversion import invert
from ..engine.plan import PLAIN, EditPlan
from ..methods.correspondence import correspondence
from ..methods.correspondence_attention import CorrespondenceAttention
from ..methods.injection import FeatureInjection
from ..methods.spatio_temporal import SpatioTemporalAttention
from ..toyworld import world
from ..toyworld.measure import measure, sample_accuracy
from ..toyworld.motion import warp_error
from ..toyworld.report import contact_sheet
from .cases import CLIPS, FIRST_SEED, WEIGHTS, Case, frames_of, through_vae
from .rows import Rows, arguments, difference, head, line, origin
from .tracking import by_features, by_flow, by_standing, pck

ROWS = Rows("toyworld_cove")
STEPS, GUIDANCE = 8, 3.0  # dense attention over 2,048 tokens a layer is slow on a CPU
INJECTION = {"feature_steps": 6, "attention_steps": 6}  # the papers' 40 of 50
MATCHES, GROUND, SPRITE = "correspondences", "edits of the background", "edits of the sprite"
WARP = {
    "warp": ("warp error", 2),
    "warp_sprite": ("on the sprite", 2),
    "warp_background": ("on the background", 2),
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
    clips: int = CLIPS


def settings() -> list[Setting]:
    """In the order of the tables."""
    edges = [("do nothing (the source)", "source"), ("ceiling (the true edit through the VAE)", "ceiling")]
    plain = [("frame by frame", {}), ("spatio-temporal attention", {"attention": "dense"})]
    merged = {"half merged": {}, "pairs merged": {"merging": "pairs"}}
    everywhere = [
        *(_cove(f"COVE, K = {k}", k, levels="all") for k in (1, 3, 5)),
        *(_cove(f"COVE, K = 3, {name}", levels="all", merge_ratio=0.5, **how) for name, how in merged.items()),
    ]
    finest = [
        *(_cove(f"COVE, K = {k}, finest level only", k) for k in (1, 3, 5)),
        _cove("COVE, K = 3, finest level only, half merged", merge_ratio=0.5),
    ]
    return [
        *(Setting(name, GROUND, kind) for name, kind in edges),
        *(Setting(name, GROUND, **numbers) for name, numbers in (*plain, *everywhere, finest[1])),
        *(Setting(name, SPRITE, kind) for name, kind in edges),
        *(Setting(name, SPRITE, injected=True, **numbers) for name, numbers in (*plain, everywhere[1], *finest)),
        Setting("stand still", MATCHES, "still"),
        Setting(FLOW, MATCHES, "flow"),
        Setting(f"{FLOW}, frames twice as large", MATCHES, "flow", enlarge=2),
        Setting("features, 16x16 (the grid of the edits)", MATCHES, "match"),
        Setting("features, 16x16, ensemble 8", MATCHES, "match", _pairs(ensemble=8)),
        Setting("features, frames twice as large, 32x32", MATCHES, "match", enlarge=2),
        Setting("features, frames twice as large, 32x32, ensemble 8", MATCHES, "match", _pairs(ensemble=8), 2),
    ]


def _cove(name: str, top_k: int = 3, merge_ratio: float = 0.0, **numbers) -> tuple[str, dict]:
    guide = _pairs(merge_ratio=merge_ratio, **numbers)
    return name, {"attention": "cove", "match": _pairs(top_k=top_k), "guide": guide}


def _pairs(**numbers) -> tuple:
    return tuple(numbers.items())


def case_of(index: int, section: str) -> Case:
    return Case.of_background(index) if section == GROUND else Case.of(index)


class Bench:
    """Runs settings on cases."""

    def __init__(self):
        self.backbone = load_backbone(WEIGHTS / "image", name="toyworld/image")
        self.latents = lru_cache(maxsize=4)(self._latents)
        self.found = lru_cache(maxsize=16)(self._found)

    def row(self, setting: Setting, clip: int) -> dict[str, float]:
        figures = self.tracked if setting.section == MATCHES else self.edited
        return figures(case_of(clip, setting.section), setting)

    # ---- correspondences --------------------------------------------------------------------------------------------

    def _latents(self, index: int, enlarge: int = 1) -> Tensor:
        frames = world.render(Case.of(index).source)[0][0]
        if enlarge > 1:
            frames = F.interpolate(frames, scale_factor=enlarge, mode="bilinear")
        return self.backbone.codec.encode(frames.movedim(1, -1))

    def _found(self, index: int, match: tuple, enlarge: int = 1):
        return correspondence(self.backbone, self.latents(index, enlarge), **dict(match))

    def tracked(self, case: Case, setting: Setting) -> dict[str, float]:
        if setting.kind == "still":
            return pck(case.source, *by_standing())
        if setting.kind == "flow":
            return pck(case.source, *by_flow(case.source, setting.enlarge))
        return pck(case.source, *by_features(self.found(case.index, setting.match, setting.enlarge)))

    # ---- edits ------------------------------------------------------------------------------------------------------

    def plan(self, case: Case, setting: Setting) -> EditPlan:
        plan = PLAIN
        if setting.attention == "cove":
            plan = plan.then(CorrespondenceAttention(self.found(case.index, setting.match), **dict(setting.guide)))
        return plan.then(SpatioTemporalAttention()) if setting.attention else plan

    def inverted(self, case: Case, setting: Setting):
        prompt = self.backbone.text.embed(world.captions(case.source)[0])
        plan = self.plan(case, setting) if setting.inverted else PLAIN
        return invert(self.backbone, self.latents(case.index), prompt, steps=STEPS, plan=plan)

    def frames(self, case: Case, setting: Setting) -> Tensor:
        """[F, H, W, 3] in 0..1: the edited clip."""
        if setting.kind != "edit":
            frames = frames_of(case.source if setting.kind == "source" else case.target)
            return frames if setting.kind == "source" else through_vae(self.backbone, frames)
        plan = self.plan(case, setting)
        if setting.injected:
            plan = EditPlan((*PLAIN.then(FeatureInjection(**INJECTION)).controls, *plan.controls))
        prompt, negative = self.backbone.text.embed(world.captions(case.target)[0]), self.backbone.text.embed("")
        trajectory = self.inverted(case, setting)
        edited = edit(self.backbone, trajectory, prompt, negative=negative, plan=plan, guidance=GUIDANCE)
        return self.backbone.codec.decode(edited)

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


# ---- rows and tables ------------------------------------------------------------------------------------------------


def table() -> str:
    numbers = {"clips": CLIPS, "seed": FIRST_SEED, "steps": STEPS, "guidance": GUIDANCE}
    groups, lines = ROWS.groups(), [HEADER.format(**numbers, **origin())]
    for section, shown in SHOWN.items():
        rows = [s for s in settings() if s.section == section and (section, s.name) in groups]
        lines += [f"\n## {section.capitalize()}\n", TEXTS[section], *head(shown)]
        lines += [line(s.name, groups[section, s.name].values(), shown) for s in rows]
        lines += _differences(groups, section, rows)
    return "\n".join(lines) + "\n"


def _differences(groups, section: str, rows: list[Setting]) -> list[str]:
    shown, lines = dict(list(SHOWN[section].items())[:5]), []
    others = [s for s in rows if s.kind not in ("source", "ceiling")]
    for base in (s for s in others if s.name in BASES):
        lines += [f'\nDifferences to "{base.name}", clip by clip:\n', *head(shown)]
        for s in others:
            comparable = section != MATCHES or (s.kind == "match" and s.enlarge == base.enlarge)
            if s != base and comparable:
                lines += difference(s.name, groups[section, s.name], groups[section, base.name], shown)
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
frames agree on what to show; what is left in the warp error is where the sprite is drawn, and no attention changes that
by much. Features are injected in 6 of the 8 steps (the papers' 40 of 50).
""",
    MATCHES: """From frame to frame, and chained from the first frame to every other, as the paper measures. The grid of
the edits has places of 4 pixels, and a chain rounds to them at every hop; with frames twice as large the same network
matches places of 2 pixels.
""",
}


SEEN = ("do nothing (the source)", "frame by frame", "spatio-temporal attention", "COVE, K = 3")
FLOW = "DIS optical flow"
BASES = (*SEEN[1:3], FLOW, f"{FLOW}, frames twice as large")


def sheet(indices: tuple[int, ...] = (0, 1)) -> None:
    """Some clips under the main settings, for the eye."""
    bench, rows, labels = Bench(), [], []
    for section, index in product((GROUND, SPRITE), indices):
        case = case_of(index, section)
        for setting in (s for s in settings() if s.section == section and s.name in SEEN):
            rows.append(bench.frames(case, setting))
            labels.append(f"clip {index}: {setting.name}")
        rows.append(frames_of(case.target))
        labels.append(f"clip {index}: truth")
    contact_sheet(rows, ROWS.file.with_suffix(".jpg"), 2, labels)


def main() -> None:
    work = arguments(__doc__, "sheet")
    if work.what == "run":
        ROWS.fill(settings(), Bench().row, work)
    elif work.what == "table":
        ROWS.table.write_text(table())
    else:
        sheet()


if __name__ == "__main__":
    main()
