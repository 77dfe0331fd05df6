"""What every method costs beyond the arithmetic it needs: a step's time, cut in three.

    python -m weft.benchmarks.overhead    # -> benchmarks/results/overhead.md

evaluations   the network as the method asks for it (rows, frames, gradients), without the method
own products  the matrix products, attention, softmax, searches and sums that a step has beside those of these
              evaluations, timed where they stand in it
rest          what is left of the step

All in one run, on one thread, in processor time, and the least of many tries: other work on the machine can only add.
Methods take turns, so that a slow minute meets all of them. Memory that was freed is kept: by itself the C library
gives it back to the system or not, as it lies, and taking it anew is up to a twentieth of a step.
"""

from __future__ import annotations

import argparse
import gc
import re
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from ..backbones.diffusers.loading import load_backbone
from ..engine.edit import edit
from ..engine.inversion import add_noise, invert, source_of
from ..engine.monitor import Monitor
from ..engine.plan import PLAIN, EditPlan
from ..engine.ports import Backbone
from ..engine.solver import DDIM
from ..methods.correspondence import correspondence
from ..methods.correspondence_attention import CorrespondenceAttention
from ..methods.coupled_flow import CoupledFlow
from ..methods.fate_zero import FateZero
from ..methods.gather_swap import GatherSwap
from ..methods.injection import FeatureInjection
from ..methods.latent_blend import LatentBlend
from ..methods.spatio_temporal import SpatioTemporalAttention
from ..methods.stem import STEMAttention
from ..methods.str_match import STRLatentOptimizer
from ..methods.token_flow import TokenFlow
from .cases import WEIGHTS, Case, frames_of
from .gpu.models import WORDS, Size, image_model, video_model
from .kernels import cpu_name
from .rows import RESULTS, origin
from .split import Asked, Done, Listening, Product, Products, Steps, keep_memory, least, matrix_rate

STEPS = 20  # of a run, of which three are taken
MIDDLE = Size(6, (24, 24), (16, 24), (48, 96, 192, 192), (16, 16, 16, 16), 64, 16, 0, heads=2, head=24)
COLUMNS = "method | step, ms | of a plain step | evaluations | own products | rest | GFLOP of its own"


@dataclass
class Method:
    """One row of a table."""

    name: str
    run: Callable[[Monitor], object]
    step: float = float("inf")  # seconds, the least so far
    asked: list[Asked] = field(default_factory=list)
    seconds: dict[tuple, float] = field(default_factory=dict)  # of what it asked, tried as often and beside its steps
    own: Counter[Product] = field(default_factory=Counter)  # less where the evaluations alone have more


class Stage:
    """One clip on one network, and the methods that run there."""

    def __init__(self, title: str, backbone: Backbone, latents: torch.Tensor, source: str, target: str):
        self.title, self.ears = title, Listening(backbone.denoiser)
        self.backbone, self.latents = replace(backbone, denoiser=self.ears), latents
        embed = backbone.text.embed
        self.source, self.target, self.empty = embed(source), embed(target), embed("")
        self.methods: list[Method] = []
        self.prices: dict[Product, float] = {}  # seconds of products, the least so far

    def edit(self, name: str, plan: EditPlan = PLAIN, solver=None) -> None:
        make = source_of if solver else add_noise
        trajectory = make(self.backbone, self.latents, self.source, steps=STEPS)

        def run(monitor: Monitor) -> None:
            edit(self.backbone, trajectory, self.target, negative=self.empty, plan=plan, solver=solver or DDIM(),
                 monitor=monitor)  # fmt: skip

        self.methods.append(Method(name, run))

    def invert(self, name: str, plan: EditPlan = PLAIN) -> None:
        def run(monitor: Monitor) -> None:
            invert(self.backbone, self.latents, self.source, steps=STEPS, plan=plan, monitor=monitor)

        self.methods.append(Method(name, run))

    def look(self, method: Method) -> None:
        """What one step asks of the network, what it multiplies beside that, and how long each product takes there."""
        products, self.ears.asked = Products(), []

        def look(begins: bool) -> None:
            self.ears.listens = begins
            products.__enter__() if begins else products.__exit__(None, None, None)

        _until_done(method, Steps(look))
        method.asked = self.ears.asked
        with Products() as plain:
            for asked in method.asked:
                self.evaluate(asked)
        method.own = Counter(products.count)
        method.own.subtract(plain.count)
        for product, seconds in [*products.prices().items(), *plain.prices().items()]:
            self.prices[product] = min(self.prices.get(product, seconds), seconds)

    @torch.no_grad()
    def evaluate(self, asked: Asked) -> None:
        asked.again(self.ears.denoiser.predict)

    def round(self) -> None:
        """Every method and every evaluation once more."""
        for method in self.methods:
            self.look(method)
            steps = Steps()
            gc.collect()
            _until_done(method, steps)
            method.step = min(method.step, *steps.seconds)
            for asked in method.asked:
                tries = [method.seconds.get(asked.alike, float("inf"))]
                tries += [least(lambda a=asked: self.evaluate(a), 0.0) for _ in steps.seconds]
                method.seconds[asked.alike] = min(tries)

    def lines(self) -> list[str]:
        plain = {}
        lines = [f"## {self.title}", "", f"| {COLUMNS} |", "|---|" + "--:|" * COLUMNS.count("|")]
        for method in self.methods:
            evaluations = sum(method.seconds[asked.alike] for asked in method.asked)
            own = sum(count * self.prices[product] for product, count in method.own.items())
            rest = method.step - evaluations - own
            kind = method.name.startswith("inversion")
            plain.setdefault(kind, method.step)
            flops = sum(count * product.flops for product, count in method.own.items())
            shares = (f"{1e3 * x:.0f} ({x / method.step:.0%})" for x in (evaluations, own, rest))
            cells = [method.name, f"{1e3 * method.step:.0f}", f"{method.step / plain[kind]:.2f}", *shares]
            lines.append(f"| {' | '.join([*cells, f'{flops / 1e9:.2f}'])} |")
        return lines


def _until_done(method: Method, steps: Steps) -> None:
    try:
        method.run(steps)
    except Done:
        return
    raise RuntimeError(f"{method.name} ended before its third step")


# ---- what is measured -----------------------------------------------------------------------------------------------


def on_images(stage: Stage, words: tuple[str, ...], bases: int) -> Stage:
    found = correspondence(stage.backbone, stage.latents)
    stage.edit("plain edit")
    stage.edit("Injection", PLAIN.then(FeatureInjection(STEPS, STEPS)))
    stage.edit("Spatio-temporal", PLAIN.then(SpatioTemporalAttention()))
    stage.edit("COVE", PLAIN.then(CorrespondenceAttention(found)))
    stage.edit("COVE, lists not merged", PLAIN.then(CorrespondenceAttention(found, merge_ratio=0)))
    stage.edit("TokenFlow", PLAIN.then(TokenFlow(batch=3)))
    stage.edit("FateZero", PLAIN.then(FateZero(words=words)))
    stage.edit("Gather-swap", PLAIN.then(GatherSwap(group=3)))
    stage.edit(f"STEM, {bases} bases", PLAIN.then(STEMAttention(bases=bases)))
    side = stage.ears.layout.pixels
    mask = torch.ones(1, *(side * n for n in stage.latents.shape[-2:]))
    mask[:, : mask.shape[1] // 2] = 0
    stage.edit("Latent blend", PLAIN.then(LatentBlend(mask)))
    stage.edit("Coupled flow", solver=CoupledFlow(start=1.0))
    stage.invert("inversion")
    stage.invert(f"inversion, STEM, {bases} bases", PLAIN.then(STEMAttention(bases=bases)))
    return stage


def on_video(stage: Stage) -> Stage:
    stage.edit("plain edit")
    stage.edit("STR-Match", PLAIN.then(STRLatentOptimizer()))
    stage.edit("STR-Match, the finest level too", PLAIN.then(STRLatentOptimizer(levels="all")))
    return stage


def stages() -> list[Callable[[], Stage]]:
    case, cpu = Case.of(0), torch.device("cpu")

    def toy(kind: str) -> tuple[Stage, tuple[str, ...]]:
        from ..toyworld import world

        backbone = load_backbone(WEIGHTS / kind, name=f"toyworld/{kind}")
        old, new = (world.captions(clips)[0] for clips in (case.source, case.target))
        words = tuple(a for a, b in zip(old.split(), new.split()) if a != b)
        latents = backbone.codec.encode(frames_of(case.source))
        return Stage(f"toyworld/{kind}, {len(latents)} frames of {_size(latents)}", backbone, latents, old, new), words

    def middle(make: Callable, shape: tuple[int, int], kind: str) -> Stage:
        latents = torch.randn(MIDDLE.frames, 4, *shape, generator=torch.Generator().manual_seed(0))
        title = f"mid-size {kind} UNet of random weights, {len(latents)} frames of {_size(latents)}"
        backbone = make(MIDDLE, cpu, torch.float32)
        return Stage(title, backbone, latents, " ".join(WORDS), " ".join(["one", *WORDS]))

    return [
        lambda: on_images(middle(image_model, MIDDLE.image, "image"), (WORDS[1],), 64),
        lambda: on_video(middle(video_model, MIDDLE.video, "video")),
        lambda: on_images(*toy("image"), 64),
        lambda: on_video(toy("video")[0]),
    ]


def _size(latents: torch.Tensor) -> str:
    return "x".join(map(str, latents.shape[-2:]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--stage", type=int, nargs="*", default=range(4), help="which of the four")
    parser.add_argument(
        "--only", default="", help="methods whose name has this regular expression in it, and the plain ones"
    )
    parser.add_argument("--out", type=Path, default=RESULTS / "overhead.md")
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_memory()
    lines = []
    for number in options.stage:
        stage = stages()[number]()
        stage.methods = [
            m for m in stage.methods if re.search(options.only, m.name) or m.name in ("plain edit", "inversion")
        ]
        for _ in range(options.rounds):
            stage.round()
        lines += ["", *stage.lines()]
        print("\n".join(lines[-len(stage.methods) - 5 :]), file=sys.stderr, flush=True)
        options.out.write_text("\n".join([header(), *lines]) + "\n")


def header() -> str:
    return """# What the methods cost beyond the arithmetic they need

{date}, commit {commit}, `python -m weft.benchmarks.overhead`, {cpu}, one thread, torch {torch}; a product of 1024 x
1024 matrices ran at {rate:.0f} GFLOP/s.
""".format(**origin(), cpu=cpu_name(), torch=torch.__version__, rate=matrix_rate() / 1e9)


if __name__ == "__main__":
    main()
