"""What every pair of methods does to one toy edit: how far it is from either method alone, and how near the truth.

    python -m weft.benchmarks.pairs    # -> benchmarks/results/pairs.md

The image methods run on `toyworld/image`, those that want a video model on `toyworld/video`. Which pairs are refused is
said in the words of the refusal, and is tested in tests/test_pairs.py, in both orders.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations

import torch
from torch import Tensor

from ..backbones.diffusers.loading import load_backbone
from ..engine.correspondence import Correspondence
from ..engine.edit import edit
from ..engine.inversion import invert
from ..engine.plan import PLAIN, Control
from ..engine.ports import Backbone
from ..measure.psnr import psnr
from ..methods.correspondence import correspondence
from ..methods.correspondence_attention import CorrespondenceAttention
from ..methods.fate_zero import FateZero
from ..methods.gather_swap import GatherSwap
from ..methods.injection import FeatureInjection
from ..methods.latent_blend import LatentBlend
from ..methods.spatio_temporal import SpatioTemporalAttention
from ..methods.stem import STEMAttention
from ..methods.str_match import STRLatentOptimizer
from ..methods.token_flow import TokenFlow
from ..toyworld import world
from ..toyworld.motion import warp_error
from .cases import WEIGHTS, Case, frames_of
from .rows import RESULTS, origin

STEPS, CLIP = 6, 0
GUIDANCE = {"image": 3.0, "video": 4.0}
Make = Callable[[Case, Correspondence, tuple[str, ...]], Control]
METHODS: dict[str, Make] = {
    "COVE": lambda case, found, words: CorrespondenceAttention(found, levels="all"),
    "Spatio-temporal": lambda case, found, words: SpatioTemporalAttention(),
    "Injection": lambda case, found, words: FeatureInjection(4, 4),
    "TokenFlow": lambda case, found, words: TokenFlow(batch=4),
    "FateZero": lambda case, found, words: FateZero(words=words, key_frames="own"),
    "Gather-swap": lambda case, found, words: GatherSwap(group=4),
    "STEM": lambda case, found, words: STEMAttention(bases=64),
    "STR-Match": lambda case, found, words: STRLatentOptimizer(strength=0.5),
    "Latent blend": lambda case, found, words: LatentBlend(case.mask),
}


class Stage:
    """One clip on one model."""

    def __init__(self, kind: str):
        self.kind, self.case = kind, Case.of(CLIP)
        self.backbone: Backbone = load_backbone(WEIGHTS / kind, name=f"toyworld/{kind}")
        latents = self.backbone.codec.encode(frames_of(self.case.source))
        old, new = (world.captions(clips)[0] for clips in (self.case.source, self.case.target))
        self.words = tuple(a for a, b in zip(old.split(), new.split()) if a != b)
        self.target, self.negative = self.backbone.text.embed(new), self.backbone.text.embed("")
        self.trajectory = invert(self.backbone, latents, self.backbone.text.embed(old), steps=STEPS)
        self.found = correspondence(self.backbone, latents)
        self.made: dict[tuple[str, ...], Tensor | str] = {}

    def frames(self, *names: str) -> Tensor | str:
        """[F, H, W, 3] of the edit under some methods, or why they are refused."""
        if names not in self.made:
            plan = PLAIN
            for name in names:
                plan = plan.then(METHODS[name](self.case, self.found, self.words))
            how = {"negative": self.negative, "guidance": GUIDANCE[self.kind], "plan": plan}
            try:
                self.made[names] = self.backbone.codec.decode(edit(self.backbone, self.trajectory, self.target, **how))
            except ValueError as refusal:
                self.made[names] = str(refusal)
        return self.made[names]

    def figures(self, frames: Tensor) -> str:
        truth = psnr(frames, frames_of(self.case.target))
        return f"{truth:.1f} | {warp_error(frames.movedim(-1, 1)[None], self.case.target).item():.1f}"

    def line(self, *names: str) -> str:
        got = self.frames(*names)
        title = " + ".join(names) or "plain edit"
        if isinstance(got, str):
            return f"| {title} | refused: {got} | | | | |"
        alone = [self.frames(name) for name in names] if len(names) == 2 else []
        far = ["" if isinstance(a, str) else f"{psnr(got, a):.1f}" for a in alone] or ["", ""]
        same = "" if len(names) < 2 else ("yes" if self.same_both_ways(got, names) else "no")
        return f"| {title} | {self.figures(got)} | {far[0]} | {far[1]} | {same} |"

    def same_both_ways(self, got: Tensor, names: tuple[str, ...]) -> bool:
        other = self.frames(*reversed(names))
        return isinstance(other, Tensor) and torch.equal(got, other)


HEADER = """# Every pair of methods on one toy edit

Held-out clip {clip}, {steps} steps, models `toyworld/image` and `toyworld/video` in float32 on a CPU, {date}, commit
{commit}. Command: `python -m weft.benchmarks.pairs`. PSNR in dB to the true edit; warp error between neighbouring
frames along the true motion, in 0..255 (lower is steadier); PSNR in dB to what either method makes alone (90: it
changes nothing beside the other). One clip says what a pair does and not how well: the methods' own tables do that.
"""
COLUMNS = (
    "| methods | PSNR to truth | warp error | PSNR to the first alone | to the second alone | same in both orders |"
)


def main() -> None:
    lines = [HEADER.format(clip=CLIP, steps=STEPS, **origin())]
    for kind in ("image", "video"):
        stage = Stage(kind)
        lines += [f"\n## On `toyworld/{kind}`\n", COLUMNS, "|---" * 6 + "|", stage.line()]
        able = [name for name in METHODS if not isinstance(stage.frames(name), str)]
        lines += [stage.line(name) for name in METHODS]
        lines += [stage.line(*pair) for pair in combinations(able, 2)]
    (RESULTS / "pairs.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
