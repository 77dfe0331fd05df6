"""One step of the papers' models at full size and random weights: time, peak memory, and the share that is ours.

    python -m weft.benchmarks.full_size                       # all that fits, where there is a GPU on it
    python -m weft.benchmarks.full_size --device cpu --model sd --model lavie --dtype bfloat16
    python -m weft.benchmarks.full_size --device cpu --model zeroscope --frames 4    # where 16 do not fit
    python -m weft.benchmarks.full_size --count --dtype float16    # nothing is computed, so all fit: see `counted`

Each line is a process of its own, as a process's peak never falls again. Stages: "inversion", one row; "sampling", two
rows, as guidance wants; "graph", a look at STR's layers with gradients, and a way back from them that begins with ones;
"str", the same with STR's loss and the source's look before it. What "str" takes over "graph" is ours. Both with and
without recompute, and of the default layers or of all levels.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from ..backbones.diffusers.cogvideox import CogVideoX
from ..backbones.diffusers.text import prompt_of
from ..backbones.diffusers.unet import DiffusersUNet
from ..backbones.diffusers.unet2d import UNet2D
from ..backbones.diffusers.unet3d import UNet3D
from ..backbones.diffusers.unet_motion import UNetMotion
from ..backbones.lavie.denoiser import LaVie
from ..backbones.memory import PlainMemory
from ..backbones.random_network import random_network
from ..engine.call import Evaluation
from ..engine.plan import PLAIN
from ..engine.probe import read_calls
from ..engine.words import NEGATIVE, POSITIVE, SOURCE, Layout, Row
from ..methods.str_inputs import paired, site_pairs
from ..methods.str_match import STRLatentOptimizer
from .counted import counting, unlaunched, without_weights

LEVELS, RECOMPUTE = ", all levels", ", recompute"
STAGES = (
    "inversion",
    "sampling",
    *(kind + levels + again for levels in ("", LEVELS) for kind in ("graph", "str") for again in ("", RECOMPUTE)),
)
MIB = 2**20


@dataclass(frozen=True)
class Case:
    """A model at the size that it was made for."""

    family: type[DiffusersUNet]
    network: str  # of diffusers, or LaVie's
    latents: tuple[int, int, int, int]  # [F, C, h, w]
    text: tuple[int, int]  # [L, E]
    config: tuple[tuple[str, object], ...] = ()


CASES = {
    "sd": Case(UNet2D, "UNet2DConditionModel", (1, 4, 64, 64), (77, 768), (("cross_attention_dim", 768),)),
    "lavie": Case(LaVie, "LaVie", (16, 4, 40, 64), (77, 768)),
    "zeroscope": Case(UNet3D, "UNet3DConditionModel", (16, 4, 40, 72), (77, 1024)),
    "animatediff": Case(
        UNetMotion,
        "UNetMotionModel",
        (16, 4, 64, 64),
        (77, 768),
        (("cross_attention_dim", 768), ("use_motion_mid_block", False)),
    ),
    "cogvideox-2b": Case(CogVideoX, "CogVideoXTransformer3DModel", (13, 16, 60, 90), (226, 4096)),
    "cogvideox-5b": Case(
        CogVideoX,
        "CogVideoXTransformer3DModel",
        (13, 16, 60, 90),
        (226, 4096),
        (("num_layers", 42), ("num_attention_heads", 48), ("use_rotary_positional_embeddings", True)),
    ),
}


def make_denoiser(case: Case, device: str, dtype: torch.dtype, weightless: bool = False) -> DiffusersUNet:
    """The network of a case at random weights, or at none: to be counted with."""
    network = random_network(case.network, "meta" if weightless else device, dtype, **dict(case.config))
    if weightless:
        without_weights(network)
    return case.family("full size", network, Layout(8), {}, PlainMemory(device))


def stage_of(denoiser: DiffusersUNet, case: Case, name: str) -> Callable[[], None]:
    """What one stage does."""
    kind, recompute = name.partition(", ")[0], RECOMPUTE in name
    prompt = prompt_of(torch.randn(1, *case.text), "random", "random")
    clips = {row: torch.randn(case.latents, device=denoiser.device) for row in (SOURCE, POSITIVE, NEGATIVE)}

    def evaluation(latents: dict[Row, Tensor], recompute: bool = False) -> Evaluation:
        rows = tuple(latents)
        return Evaluation(torch.stack([*latents.values()]), 501.0, (prompt,) * len(rows), rows, recompute=recompute)

    def evaluate(*rows: Row) -> None:
        with torch.no_grad():
            denoiser.predict(evaluation({row: clips[row] for row in rows}))

    def guide(str_loss: bool) -> None:
        control = STRLatentOptimizer(levels="all" if LEVELS in name else "all_but_finest")
        pairs = site_pairs(denoiser, control.levels)
        look = partial(read_calls, denoiser.predict, plan=PLAIN, layers={s.layer for pair in pairs for s in pair})
        if str_loss:
            with torch.no_grad():
                source = control.of_source(paired(pairs, look(evaluation({SOURCE: clips[SOURCE]}), row=SOURCE)))
        z = clips[POSITIVE].clone().requires_grad_()
        target = paired(pairs, look(evaluation({POSITIVE: z}, recompute), row=POSITIVE))
        if str_loss:
            control.pull(source, target, z)
        else:
            ends = [x for call in {c.site: c for pair in target for c in pair}.values() for x in (call.q, call.k)]
            torch.autograd.grad(ends, z, [x.new_ones(()).expand_as(x) for x in ends])  # which take no memory

    if kind == "inversion":
        return partial(evaluate, SOURCE)
    return partial(evaluate, POSITIVE, NEGATIVE) if kind == "sampling" else partial(guide, kind == "str")


def case_of(model: str, frames: int | None) -> Case:
    """A case, with fewer frames if so many are wanted."""
    case = CASES[model]
    return case if frames is None else replace(case, latents=(frames, *case.latents[1:]))


def count(case: Case, stage: str, dtype: str) -> dict[str, float]:
    """MiB as `measure` gives them, counted by shapes."""
    denoiser = make_denoiser(case, "cpu", getattr(torch, dtype), weightless=True)
    weights = sum(p.numel() * p.element_size() for p in denoiser.network.parameters())
    with unlaunched(), counting(denoiser.network) as counted:
        run = stage_of(denoiser, case, stage)
        counted.peak = before = counted.live
        run()
    return {"s": float("nan"), "weights": weights / MIB, "peak": (counted.peak - before) / MIB}


def measure(case: Case, stage: str, device: str, dtype: str) -> dict[str, float]:
    """Seconds, and MiB of the weights and at the peak beside them, of one stage after another of its kind."""
    denoiser = make_denoiser(case, device, getattr(torch, dtype))
    weights = sum(p.numel() * p.element_size() for p in denoiser.network.parameters())
    run = stage_of(denoiser, case, stage)
    if device != "cpu":
        run()  # kernels are compiled and chosen the first time
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    before, start = _peak(device), time.perf_counter()
    run()
    if device != "cpu":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
    return {"s": time.perf_counter() - start, "weights": weights / MIB, "peak": (_peak(device) - before) / MIB}


def _peak(device: str) -> int:
    """Bytes: what torch held at most on a GPU, what the process had at most in main memory."""
    if device != "cpu":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def stages(model: str) -> list[str]:
    """Those that a model has: an image model has no pairs that STR looks at."""
    return [s for s in STAGES if model != "sd" or s in ("inversion", "sampling")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cpu", "cuda"))
    parser.add_argument("--dtype", default="", choices=("", "float32", "bfloat16", "float16"))
    parser.add_argument("--model", action="append", choices=CASES)
    parser.add_argument("--stage", choices=STAGES, help="one alone, in this process, as JSON")
    parser.add_argument("--frames", type=int, help="of the clip, where the model's own number does not fit")
    parser.add_argument("--count", action="store_true", help="count what is held by shapes, on any machine")
    options = parser.parse_args()
    dtype = options.dtype or ("float32" if options.device == "cpu" else "float16")
    models = options.model or list(CASES)
    if options.stage:
        case = case_of(models[0], options.frames)
        how = (case, options.stage)
        print(json.dumps(count(*how, dtype) if options.count else measure(*how, options.device, dtype)))
        return
    print(f"| model, {options.device} {dtype} | stage | s | weights MiB | peak beside MiB |\n|---|---|---|---|---|")
    for model in models:
        for stage in stages(model):
            told = ["--device", options.device, "--dtype", dtype, "--model", model, "--stage", stage]
            told += ["--count"] * options.count + (["--frames", str(options.frames)] if options.frames else [])
            done = subprocess.run([sys.executable, "-m", __spec__.name, *told], capture_output=True, text=True)
            if done.returncode:  # killed, or out of memory
                print(f"| {model} | {stage} | - | - | {(done.stderr.strip().splitlines() or ['killed'])[-1][:60]} |")
                continue
            got = json.loads(done.stdout.strip().splitlines()[-1])
            print(f"| {model} | {stage} | {got['s']:.2f} | {got['weights']:.0f} | {got['peak']:.0f} |", flush=True)


if __name__ == "__main__":
    main()
