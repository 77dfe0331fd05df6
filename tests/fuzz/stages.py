"""Every stage of an edit on tiny models, cancelled or out of memory in the midst of it.

A cancel comes when it likes, while a network is at work: what counts is what begins after it. So the flag is raised
within an evaluation, and the stage must find it before the next.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn

from weft.backbones.diffusers.loading import load_backbone
from weft.backbones.lora import adapt
from weft.backbones.memory import PlainMemory
from weft.engine.edit import edit
from weft.engine.inversion import invert
from weft.engine.monitor import Monitor
from weft.engine.plan import PLAIN, EditPlan, Region
from weft.measure import METRICS
from weft.measure.metric import Clips, evaluate
from weft.methods.adaptation import fit
from weft.methods.candidates import candidates
from weft.methods.correspondence import correspondence
from weft.methods.correspondence_attention import CorrespondenceAttention
from weft.methods.coupled_flow import CoupledFlow, coupled_edit
from weft.methods.fate_zero import FateZero
from weft.methods.gather_swap import GatherSwap
from weft.methods.injection import FeatureInjection
from weft.methods.latent_blend import LatentBlend
from weft.methods.spatio_temporal import SpatioTemporalAttention
from weft.methods.stem import STEMAttention
from weft.methods.str_match import STRLatentOptimizer
from weft.methods.token_flow import TokenFlow
from weft.methods.word_view import word_maps
from weft.tests.tiny import SIZE, make_folder, make_latents
from weft.vision.detector import load_detector
from weft.vision.find import find
from weft.vision.prompts import read_prompts
from weft.vision.sam import load_segmenter
from weft.vision.segment import segment
from weft.vision.track import track

WEIGHTS = Path(__file__).resolve().parents[2] / "toyworld" / "weights"
CPU = PlainMemory("cpu")
FRAMES, STEPS, PIXELS = 5, 3, 2
LONG = 20  # frames, more than the VAE takes at once


class Cancelled(Exception):
    pass


@dataclass(eq=False)
class Flag(Monitor):
    """A cancel that comes during one evaluation, and how many begin after it."""

    at: int | None = None  # which evaluation, from 0; None: never
    began: int = 0
    after: int = 0
    looks: int = 0

    def evaluation(self, *_) -> None:
        self.after += self.raised
        self.began += 1

    @property
    def raised(self) -> bool:
        return self.at is not None and self.began > self.at

    def check(self) -> None:
        self.looks += 1
        if self.raised:
            raise Cancelled


@dataclass(eq=False)
class World:
    """What the stages work with, made once."""

    flag: Flag = field(default_factory=Flag)

    def model(self, kind: str):
        """A tiny model whose every evaluation the flag is told of, and that looks at the flag."""
        with TemporaryDirectory() as folder:
            made = make_folder(Path(folder) / "model", kind=kind)
            backbone = load_backbone(made, dtype="float32", memory=CPU, check=lambda: self.flag.check())
        for module in (backbone.denoiser.network, backbone.codec.vae.encoder, backbone.codec.vae.decoder):
            self.tells(module)
        return backbone

    def tells(self, module: nn.Module) -> None:
        module.register_forward_pre_hook(lambda *_: self.flag.evaluation())

    @cached_property
    def video(self):
        return self.model("video")

    @cached_property
    def image(self):
        return self.model("image")

    @cached_property
    def instruct(self):
        return self.model("instruct")

    @cached_property
    def sam(self):
        sam = load_segmenter(WEIGHTS / "sam" / "sam.safetensors", memory=CPU)
        self.tells(sam.sam.image_encoder)
        return sam

    @cached_property
    def detector(self):
        detector = load_detector(WEIGHTS / "detector", memory=CPU)
        self.tells(detector.model)
        return detector

    @cached_property
    def found(self):
        return correspondence(self.image, make_latents(FRAMES), top_k=2, window=3)

    def trajectory(self, backbone):
        return invert(backbone, make_latents(FRAMES), backbone.text.embed("a red square"), steps=STEPS)


def clip(frames: int = FRAMES, height: int = SIZE[0] * PIXELS, width: int = SIZE[1] * PIXELS) -> Tensor:
    return torch.rand(frames, height, width, 3, generator=torch.Generator().manual_seed(0))


def mask() -> Tensor:
    made = torch.zeros(1, SIZE[0] * PIXELS, SIZE[1] * PIXELS)
    made[:, :, : SIZE[1]] = 1
    return made


# ---- stages: (world) -> what is run, by a monitor -------------------------------------------------------------------


def inversion(kind: str, convention: str, **how) -> Callable:
    def stage(world: World):
        backbone = getattr(world, kind)
        prompt = backbone.text.embed("a red square")
        how_many = {"steps": STEPS, "convention": convention, **how}
        return lambda monitor: invert(backbone, make_latents(FRAMES), prompt, monitor=monitor, **how_many)

    return stage


def sampling(kind: str, control: Callable | None = None, **how) -> Callable:
    def stage(world: World):
        backbone = getattr(world, kind)
        trajectory, target = world.trajectory(backbone), backbone.text.embed("a blue square")
        plan = PLAIN if control is None else PLAIN.then(control(world))
        options = {"plan": plan, "guidance": 2.0, **{name: make(backbone) for name, make in how.items()}}
        return lambda monitor: edit(backbone, trajectory, target, monitor=monitor, **options)

    return stage


def regions(world: World):
    backbone = world.image
    target = backbone.text.embed("a blue square")
    plan = EditPlan(regions=(Region(target, mask=mask()), Region(backbone.text.embed("a red circle"))))
    trajectory = world.trajectory(backbone)
    return lambda monitor: edit(backbone, trajectory, target, plan=plan, guidance=2.0, monitor=monitor)


def coupled(world: World):
    backbone = world.video
    source, target = (backbone.text.embed(text) for text in ("a red square", "a blue square"))
    solver = CoupledFlow(averages=2)
    return lambda monitor: coupled_edit(
        backbone, make_latents(FRAMES), source, target, solver=solver, steps=STEPS, guidance=2.0, monitor=monitor
    )


def adaptation(world: World):
    source, edited = clip(2).split(1)
    instruction = world.instruct.text.embed("a blue square")
    how = {"source": source, "edited": edited, "instruction": instruction, "steps": 6}
    return lambda monitor: adapt(
        world.instruct, lambda model, weights: fit(model, weights, **how, monitor=monitor), rank=2
    )


def some_candidates(world: World):
    instruction = world.instruct.text.embed("a blue square")
    return lambda monitor: candidates(world.instruct, clip(1), instruction, count=3, steps=2, monitor=monitor)


def matching(world: World):
    return lambda monitor: correspondence(
        world.image, make_latents(FRAMES), top_k=2, window=3, ensemble=3, monitor=monitor
    )


def words(world: World):
    trajectory = world.trajectory(world.image)
    return lambda monitor: word_maps(world.image, trajectory, ("a", "red", "square"), monitor=monitor)


def encoding(world: World):
    return lambda monitor: world.image.codec.encode(clip(LONG))


def decoding(world: World):
    return lambda monitor: world.image.codec.decode(make_latents(LONG))


def masks_by_click(world: World):
    asked = read_prompts("0: 9,7; 1: 9,7; 2: 9,7", "", "", 0)
    return lambda monitor: segment(world.sam, clip(3, 32, 32), asked, monitor=monitor)


def tracking(world: World):
    known = torch.zeros(1, 32, 32)
    known[:, 8:24, 8:24] = 1
    return lambda monitor: track(world.sam, clip(FRAMES, 32, 32), known, at=(0,), monitor=monitor)


def boxes(world: World):
    return lambda monitor: find(world.detector, clip(3, 32, 32), "a red square", at=(0, 1, 2), monitor=monitor)


def figures(world: World):
    class Counted(Clips):
        def frames(self, name):
            for frame in super().frames(name):
                if name == "edit":  # it is read once for each figure of a frame
                    world.flag.evaluation()
                yield frame

    clips = Counted(clip(), 1 - clip(), mask=mask(), reference=clip())
    return lambda monitor: evaluate(clips, METRICS, monitor)


STAGES: dict[str, Callable] = {
    "encode": encoding,
    "decode": decoding,
    "inversion, warm start": inversion("video", "warm_start"),
    "inversion, paper": inversion("image", "paper"),
    "inversion, STEM": inversion("image", "warm_start", plan=PLAIN.then(STEMAttention(bases=8)), evaluations=2),
    "inversion in chunks": inversion("image", "warm_start", chunk_frames=2),
    "sampling": sampling("video"),
    "sampling in chunks": sampling("image", chunk_frames=lambda _: 2),
    "sampling, regions": regions,
    "STR-Match": sampling("video", lambda w: STRLatentOptimizer(strength=0.5)),
    "spatio-temporal attention": sampling("image", lambda w: SpatioTemporalAttention()),
    "feature injection": sampling("image", lambda w: FeatureInjection()),
    "TokenFlow": sampling("image", lambda w: TokenFlow(batch=2)),
    "FateZero": sampling("image", lambda w: FateZero(words=("red",))),
    "gather-swap attention": sampling("image", lambda w: GatherSwap(group=2)),
    "STEM attention": sampling("image", lambda w: STEMAttention(bases=8)),
    "correspondence attention": sampling("image", lambda w: CorrespondenceAttention(w.found)),
    "latent blend": sampling("image", lambda w: LatentBlend(mask())),
    "instruction model": sampling("instruct"),
    "coupled edit": coupled,
    "test-time adaptation": adaptation,
    "edit candidates": some_candidates,
    "correspondence": matching,
    "preview of words": words,
    "SAM mask": masks_by_click,
    "track mask": tracking,
    "text to boxes": boxes,
    "evaluate edit": figures,
}


def cancelled(stage: str, world: World | None = None) -> list[dict[str, int]]:
    """The stage is run to its end, then cancelled in its first evaluation, in the middle and in the last but one.

    Returns:
        For each cancel: at (evaluation), of (evaluations of the whole stage), after (that began after the cancel),
        stopped (1 where the stage ended by the cancel).
    """
    world = World() if world is None else world
    run = STAGES[stage](world)
    world.flag = whole = Flag()
    run(whole)
    rows = []
    for at in dict.fromkeys((0, whole.began // 2, whole.began - 2)):
        world.flag = Flag(at)
        try:
            run(world.flag)
            stopped = 0
        except Cancelled:
            stopped = 1
        rows.append({"at": at, "of": whole.began, "after": world.flag.after, "stopped": stopped})
    world.flag = Flag()
    return rows
