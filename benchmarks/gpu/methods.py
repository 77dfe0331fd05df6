"""What each method costs on networks of real sizes: seconds a step, memory, launches, and how long the GPU waits."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import torch
from torch.profiler import ProfilerActivity, profile

from ...engine.correspondence import Correspondence
from ...engine.edit import edit
from ...engine.inversion import add_noise, invert, source_of
from ...engine.monitor import Monitor
from ...engine.plan import PLAIN, EditPlan
from ...engine.ports import Backbone
from ...engine.solver import DDIM
from ...methods.correspondence import correspondence
from ...methods.correspondence_attention import CorrespondenceAttention
from ...methods.coupled_flow import CoupledFlow
from ...methods.fate_zero import FateZero
from ...methods.gather_swap import GatherSwap
from ...methods.injection import FeatureInjection
from ...methods.spatio_temporal import SpatioTemporalAttention
from ...methods.stem import STEMAttention
from ...methods.str_match import STRLatentOptimizer
from ...methods.token_flow import TokenFlow
from .models import WORDS, Size, image_model, video_model
from .report import Report

STEPS = 5  # the first compiles, the last is profiled, the median of the others counts
COLUMNS = "model | method | s a step | of a plain step | peak GB | launches a step | GPU idle"


class StepClock(Monitor):
    """Times every step of a run and profiles the last."""

    def __init__(self, device: torch.device):
        self.device = device
        self.seconds: list[float] = []
        self.profiler = None
        self.launches, self.busy = 0, 0.0
        self.started = self.now()

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def progress(self, done: int, total: int, preview=None) -> None:
        now = self.now()
        if done < total:
            self.seconds.append(now - self.started)
        if done == total - 1 and self.device.type == "cuda":
            self.profiler = profile(activities=[ProfilerActivity.CUDA])
            self.profiler.start()
        elif done == total and self.profiler is not None:
            self.profiler.stop()
            events = [e for e in self.profiler.events() if e.device_type == torch.autograd.DeviceType.CUDA]
            self.launches = len(events)
            self.busy = sum(e.device_time for e in events) * 1e-6
        self.started = self.now()

    @property
    def step(self) -> float:
        """Seconds, the first step and the profiled one left out."""
        return median(self.seconds[1:])


def costs_on_images(report: Report, size: Size, device: torch.device, dtype: torch.dtype) -> None:
    """Stable Diffusion 1.5 on a clip of `size.frames`."""
    backbone = image_model(size, device, dtype)
    report.say(f"INFO {backbone.name}: {_parameters(backbone):.0f} M parameters, {dtype}")
    latents = torch.randn(size.frames, 4, *size.image)
    stage = Stage(report, backbone, latents)
    found: list[Correspondence] = []
    report.attempt("correspondence", lambda: found.append(correspondence(backbone, latents)), 10)
    stage.edit("plain", PLAIN)
    stage.edit("Spatio-temporal attention", PLAIN.then(SpatioTemporalAttention()))
    if found:
        for merged in (0.5, 0.0):
            plan = PLAIN.then(CorrespondenceAttention(found[0], merge_ratio=merged))
            stage.edit(f"COVE, merge ratio {merged:g}", plan)
    stage.edit("Injection", PLAIN.then(FeatureInjection(STEPS, STEPS)))
    stage.edit("TokenFlow", PLAIN.then(TokenFlow(batch=min(8, size.frames))))
    stage.edit("FateZero", PLAIN.then(FateZero(words=(WORDS[1],))))
    stage.edit("Gather-swap", PLAIN.then(GatherSwap(group=4)))
    stage.edit("STEM, in the edit", PLAIN.then(STEMAttention()))
    stage.invert("inversion", PLAIN)
    stage.invert("inversion, STEM", PLAIN.then(STEMAttention()))
    if device.type == "cuda":  # at sizes for a CPU the compiler takes longer than all else
        backbone.denoiser.compiles = True
        stage.edit("plain, compiled", PLAIN, seconds=60)


def costs_on_video(report: Report, size: Size, device: torch.device, dtype: torch.dtype) -> None:
    """Zeroscope's network on a clip of LaVie's size."""
    backbone = video_model(size, device, dtype)
    report.say(f"INFO {backbone.name}: {_parameters(backbone):.0f} M parameters, {dtype}")
    stage = Stage(report, backbone, torch.randn(size.frames, 4, *size.video))
    stage.edit("plain", PLAIN)
    stage.edit("STR-Match", PLAIN.then(STRLatentOptimizer()))
    stage.edit("STR-Match, the finest level too", PLAIN.then(STRLatentOptimizer(levels="all")))
    stage.edit("Coupled flow", PLAIN, CoupledFlow())
    stage.invert("inversion", PLAIN)


class Stage:
    """One clip on one network; rows of the table are held against its plain edit."""

    def __init__(self, report: Report, backbone: Backbone, latents: torch.Tensor):
        self.report, self.backbone, self.latents = report, backbone, latents
        embed = backbone.text.embed
        self.source, self.target, self.empty = embed(" ".join(WORDS)), embed(" ".join(["one", *WORDS])), embed("")
        self.plain: dict[str, float] = {}

    def edit(self, name: str, plan: EditPlan, solver=None, seconds: float = 10) -> None:
        make = source_of if solver else add_noise
        trajectory = make(self.backbone, self.latents, self.source, steps=STEPS)

        def run(clock: StepClock) -> None:
            edit(self.backbone, trajectory, self.target, negative=self.empty, plan=plan, solver=solver or DDIM(),
                 monitor=clock)  # fmt: skip

        self.report.attempt(f"{self.backbone.name}, {name}", lambda: self.measure(name, "edit", run), seconds)

    def invert(self, name: str, plan: EditPlan) -> None:
        def run(clock: StepClock) -> None:
            invert(self.backbone, self.latents, self.source, steps=STEPS, plan=plan, monitor=clock)

        self.report.attempt(f"{self.backbone.name}, {name}", lambda: self.measure(name, "inversion", run), 10)

    def measure(self, name: str, kind: str, run: Callable[[StepClock], None]) -> None:
        device = self.backbone.denoiser.device
        clock = StepClock(device)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        run(clock)
        peak = torch.cuda.max_memory_allocated(device) / 1e9 if device.type == "cuda" else float("nan")
        seconds = clock.step
        plain = self.plain.setdefault(kind, seconds)
        idle = f"{max(0.0, 1 - clock.busy / seconds):.0%}" if clock.launches else ""
        cells = [self.backbone.name, name, f"{seconds:.3f}", f"{seconds / plain:.2f}", f"{peak:.2f}"]
        self.report.row("Methods", COLUMNS, [*cells, str(clock.launches or ""), idle])


def _parameters(backbone: Backbone) -> float:
    return sum(p.numel() for p in backbone.denoiser.network.parameters()) / 1e6
