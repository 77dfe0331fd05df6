"""STEM inversion on held-out toy clips: what comes back, what an edit makes of it, and what it costs.

    python -m weft.benchmarks.toyworld_stem run      # every setting on every clip; goes on where it stopped
    python -m weft.benchmarks.toyworld_stem table    # rows -> benchmarks/results/toyworld_stem.md
    python -m weft.benchmarks.toyworld_stem sheet    # one clip under every editor -> toyworld_stem.jpg

Rows are kept in benchmarks/results/toyworld_stem.jsonl: one a setting and clip.

It is long because a table is its settings, its run and its text.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from torch import Tensor

from ..backbones.diffusers.loading import load_backbone
from ..engine.edit import edit
from ..engine.inversion import invert
from ..engine.monitor import Recording
from ..engine.plan import PLAIN, EditPlan
from ..engine.source import Trajectory
from ..measure.psnr import psnr
from ..measure.ssim import ssim
from ..methods.fate_zero import FateZero
from ..methods.spatio_temporal import SpatioTemporalAttention
from ..methods.stem import STEMAttention
from ..methods.token_flow import TokenFlow, with_injection
from ..toyworld import world
from ..toyworld.measure import measure
from ..toyworld.motion import warp_error
from ..toyworld.report import contact_sheet
from .cases import CLIPS, FIRST_SEED, WEIGHTS, Case, frames_of, through_vae
from .measure import peak_bytes
from .real_clip import FRAMES as REAL_FRAMES
from .real_clip import SIZE as REAL_PIXELS
from .real_clip import flow_warp_error, real_clip
from .rows import Clips, Rows, arguments, difference, head, line, origin

ROWS = Rows("toyworld_stem")
STEPS, GUIDANCE = 10, 4.0
FRAMES = 8  # of a toy clip
PAPER, WARM = "Reconstruction, the paper's inversion", "Reconstruction, warm start"
REAL, REAL_WARM = "A real clip, the paper's inversion", "A real clip, warm start"
EDITS, WARM_EDITS = "Edits, the paper's inversion", "Edits, warm start"
RECONSTRUCTION = {  # measure -> (heading, digits)
    "psnr": ("PSNR to source", 2),
    "ssim": ("SSIM", 4),
    "psnr_vae": ("PSNR to the VAE's round trip", 2),
    "warp_error": ("warp error", 2),
    "noise_std": ("std of the noise", 2),
    "dead": ("dead bases", 2),
    "seconds": ("CPU s", 1),
    "peak_mb": ("peak MB", 0),
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
    clips: int = CLIPS
    kind: str = "run"  # or "vae": the clip through the VAE, which is all that can come back

    @property
    def key(self) -> tuple[str, str]:
        return self.section, self.name

    @property
    def convention(self) -> str:
        return "warm_start" if self.section in (WARM, WARM_EDITS, REAL_WARM) else "paper"

    @property
    def real(self) -> bool:
        return self.section in (REAL, REAL_WARM)


DENSE = ("DDIM + spatio-temporal attention", "dense", {})
DDIM, K64 = ("DDIM", "", {}), ("STEM, K = 64", "stem", {"bases": 64})


def settings() -> list[Setting]:
    many = [
        (f"STEM, K = {k}, R = {r}", "stem", {"bases": k, "iterations": r})
        for k, r in ((16, 5), (64, 5), (256, 5), (64, 1), (64, 3))
    ]
    found = []
    for section, ways in ((PAPER, (DDIM, DENSE, *many)), (WARM, (DDIM, DENSE, K64))):
        found += [Setting(name, section, attention, numbers) for name, attention, numbers in ways]
    for section in (EDITS, WARM_EDITS):
        for editor, title in EDITORS.items():
            for name, attention, numbers in (DDIM, K64):
                found.append(Setting(f"{title}, {name} inversion", section, attention, numbers, editor))
    shared = "FateZero on shared bases (ours), STEM, K = 64 inversion"
    found.append(Setting(shared, EDITS, *K64[1:], "fate_zero_shared"))
    for section in (REAL, REAL_WARM):
        found.append(Setting("the clip through the VAE", section, clips=1, kind="vae"))
        found += [Setting(name, section, attention, n, clips=1) for name, attention, n in (DDIM, DENSE, *many)]
    return found


EDITORS = {"plain": "plain edit", "token_flow": "TokenFlow", "fate_zero": "FateZero"}


class Bench:
    """Runs settings on cases; trajectories of the clip at hand are kept for the editors."""

    def __init__(self):
        self.backbone = load_backbone(WEIGHTS / "image", name="toyworld/image")
        self.clip, self.kept = None, {}

    def source(self, clip: int, s: Setting) -> Tensor:
        return real_clip() if s.real else frames_of(Case.of(clip).source)

    def inverted(self, clip: int, s: Setting):
        """(trajectory, CPU seconds, share of dead bases)"""
        if self.clip != (clip, s.real):
            self.clip, self.kept = (clip, s.real), {}
        numbers = {"iterations": 5, **s.numbers} if s.numbers else {}
        key = (s.attention, *sorted(numbers.items()), s.convention)
        if key not in self.kept:
            log, start = Recording(), time.process_time()
            trajectory = self.inversion(clip, s)(steps=STEPS, monitor=log)
            dead = [r["dead_bases"] for r in log.records]
            self.kept[key] = trajectory, time.process_time() - start, sum(dead) / len(dead) if dead else math.nan
        return self.kept[key]

    def inversion(self, clip: int, s: Setting) -> Callable[..., Trajectory]:
        prompt = self.backbone.text.embed("" if s.real else world.captions(Case.of(clip).source)[0])
        latents = self.backbone.codec.encode(self.source(clip, s))
        return partial(invert, self.backbone, latents, prompt, convention=s.convention, plan=self.attention(s))

    def attention(self, s: Setting) -> EditPlan:
        if s.attention == "dense":
            return PLAIN.then(SpatioTemporalAttention())
        return PLAIN.then(STEMAttention(**s.numbers)) if s.attention == "stem" else PLAIN

    def editor(self, case: Case, s: Setting) -> EditPlan:
        if s.editor == "token_flow":
            control = TokenFlow(batch=FRAMES // 2)
            return with_injection(PLAIN, control, feature_steps=STEPS * 4 // 5, attention_steps=STEPS // 2)
        words = changed_words(case)
        if s.editor == "fate_zero":
            return PLAIN.then(FateZero(words=words, key_frames="own"))
        if s.editor == "fate_zero_shared":
            return PLAIN.then(STEMAttention(shared=True, **s.numbers)).then(FateZero(words=words, key_frames="own"))
        return PLAIN

    def frames(self, clip: int, s: Setting) -> Tensor:
        """[F, H, W, 3] in 0..1: the clip given back, or edited."""
        if s.kind == "vae":
            return self.through_vae(clip, s)
        trajectory = self.inverted(clip, s)[0]
        if not s.editor:
            latents = edit(self.backbone, trajectory, trajectory.prompt, plan=self.attention(s), guidance=1)
        else:
            case = Case.of(clip)
            positive, negative = self.backbone.text.embed(world.captions(case.target)[0]), self.backbone.text.embed("")
            plan = self.editor(case, s)
            latents = edit(self.backbone, trajectory, positive, negative=negative, plan=plan, guidance=GUIDANCE)
        return self.backbone.codec.decode(latents)

    def through_vae(self, clip: int, s: Setting) -> Tensor:
        return through_vae(self.backbone, self.source(clip, s))

    def row(self, s: Setting, clip: int) -> dict[str, float]:
        seconds = 0 if s.kind == "vae" else self.inverted(clip, s)[1]
        start = time.process_time()
        frames = self.frames(clip, s)
        seconds += time.process_time() - start
        if not s.editor:
            return self.given_back(clip, s, frames) | {"seconds": seconds}
        case, video = Case.of(clip), frames.movedim(-1, 1)[None]
        figures = {name: value.item() for name, value in measure(video, case.source, case.target).items()}
        return figures | {"warp_error": warp_error(video, case.target).item(), "seconds": seconds}

    def given_back(self, clip: int, s: Setting, frames: Tensor) -> dict[str, float]:
        source = self.source(clip, s)
        figures = {"psnr": psnr(frames, source), "ssim": ssim(frames, source)}
        if s.real:
            figures["warp_error"] = flow_warp_error(frames, source)
        else:
            figures["warp_error"] = warp_error(frames.movedim(-1, 1)[None], Case.of(clip).source).item()
        if s.kind == "vae":
            return figures
        trajectory, _, dead = self.inverted(clip, s)
        figures |= {"psnr_vae": psnr(frames, self.through_vae(clip, s)), "noise_std": trajectory.noise_std}
        figures["dead"] = dead
        if clip == 0:  # it is the same for all
            figures["peak_mb"] = peak_bytes(partial(self.inversion(clip, s), steps=1)) / 2**20
        return figures


def changed_words(case: Case) -> tuple[str, ...]:
    """Words of the source's caption that the edit replaces."""
    old, new = (world.captions(clips)[0].split() for clips in (case.source, case.target))
    return tuple(a for a, b in zip(old, new) if a != b)


def table() -> str:
    groups = ROWS.groups()
    numbers = {"clips": CLIPS, "seed": FIRST_SEED, "steps": STEPS, "real": REAL_FRAMES, "pixels": REAL_PIXELS}
    lines = [HEADER.format(**numbers, **origin())]
    for section in dict.fromkeys(s.section for s in settings() if s.key in groups):
        shown, cost = (EDITED, ()) if section in (EDITS, WARM_EDITS) else (RECONSTRUCTION, ("GFLOP a step",))
        lines += [f"\n## {section}\n", *head(shown, *cost)]
        for s in (s for s in settings() if s.section == section and s.key in groups):
            lines.append(line(s.name, groups[s.key].values(), shown, *(gflop(s) for _ in cost)))
    return "\n".join([*lines, "\n## STEM against DDIM, clip by clip\n", *differences(groups)]) + "\n"


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
change, and its frames attend to themselves.

Peak: the most that tensors take at once in one step of the inversion of the first clip, measured.

How to read it: where the inversion is poor, the bases make it far better, and every editor with it. 16 bases or a
single round do nearly as well, and dense attention over all frames does not help; which suggests that it is coarse
attention that steadies such an inversion, rather than a faithful summary of the clip. With warm start, plain DDIM
leaves nothing to repair: a plain edit is a little steadier with the bases, the editors are no better off.

The real clip is {real} frames of "carphone" at {pixels}x{pixels}, with an empty prompt. Neither the VAE nor the network
has seen anything like it, and what the VAE alone gives back bounds what can be had. Its warp error goes along the
source's optical flow. The papers' inversion loses it, however it attends; with warm start it comes back to within 1 dB
of that bound, with the bases to within 0.6 to 0.9. One clip proves little."""


def gflop(s: Setting) -> str:
    """Self-attention of one evaluation of a clip."""
    total, (frames, side) = 0.0, REAL_SIZE if s.real else TOY_SIZE
    for octaves, width, layers in LAYERS:
        tokens = (side >> octaves) ** 2
        n = frames * tokens
        if s.attention == "stem":
            k, r = min(s.numbers["bases"], n // 2), s.numbers.get("iterations", 5)
            products = n * k * (2 * r + 2) + 2 * n * k  # E and M r times, values once more; queries to bases
        else:
            products = 2 * n * (n if s.attention == "dense" else tokens)
        total += 2 * products * width * layers / 1e9
    return "" if s.kind == "vae" else f"{total:.2f}"


LAYERS = ((0, 32, 3), (1, 64, 4))  # halvings of the latent grid, width, how many
TOY_SIZE, REAL_SIZE = (FRAMES, world.SIZE // 4), (REAL_FRAMES, REAL_PIXELS // 4)  # frames, latent cells a side


def differences(groups) -> list[str]:
    compared = {
        "psnr": ("PSNR to source or truth", 3),
        "ssim": ("SSIM or accuracy", 3),
        "warp_error": ("warp error", 3),
    }
    lines = head(compared)
    for s in (s for s in settings() if s.attention and not s.real):
        editor = s.editor.removesuffix("_shared")
        base = next(b for b in settings() if (b.section, b.editor, b.attention) == (s.section, editor, ""))
        mine, theirs = (_renamed(groups.get(x.key, {})) for x in (s, base))
        where = " (warm start)" if s.convention == "warm_start" else ""
        lines += difference(s.name + where, mine, theirs, compared)
    return lines


def _renamed(clips: Clips) -> Clips:
    """An edit's measures under the names of a reconstruction's, so that both stand in one table."""
    return {i: {"psnr": r.get("psnr_truth"), "ssim": r.get("target_accuracy"), **r} for i, r in clips.items()}


def sheet(clip: int = 0) -> None:
    """One clip under every editor after a STEM inversion."""
    bench, case = Bench(), Case.of(clip)
    shown = [s for s in settings() if s.section == EDITS and s.editor in EDITORS and s.numbers]
    rows = [frames_of(case.source), *(bench.frames(clip, s) for s in shown), frames_of(case.target)]
    contact_sheet(rows, ROWS.file.with_suffix(".jpg"), 2, ["source", *(s.name for s in shown), "truth"])


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
