"""One step of ComfyUI's own models at full size and random weights, through the pack's whole path: time and memory.

    python -m weft.benchmarks.full_size_native --comfyui ~/comfy/ComfyUI                    # all that fits, on a GPU
    python -m weft.benchmarks.full_size_native --comfyui ~/comfy/ComfyUI --device cpu --model wan-1.3b --clip 5x128x192

Each line is a process of its own, as a process's peak never falls again. Stages: "inversion", one row; "guided", two;
"str", the source's look, the edit's look with gradients through blocks that are evaluated again, then two rows.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from dataclasses import dataclass

import torch
from torch import Tensor

from ..backbones.comfy.random_model import random_patcher, start_core

MIB = 2**20
STAGES = ("inversion", "guided", "str")


@dataclass(frozen=True)
class Case:
    """A model at the size that it was made for."""

    kind: str  # in comfy.supported_models
    config: dict
    clip: tuple[int, int, int]  # frames, height and width in pixels
    text: tuple[int, int]  # [L, E]
    channels: int
    frames: int  # in a latent frame
    stages: tuple[str, ...] = STAGES


WAN = {
    "image_model": "wan2.1",
    "model_type": "t2v",
    "in_dim": 16,
    "out_dim": 16,
    "text_dim": 4096,
    "freq_dim": 256,
    "patch_size": (1, 2, 2),
    "window_size": (-1, -1),
    "qk_norm": True,
    "cross_attn_norm": True,
    "eps": 1e-6,
}
SD15 = {
    "image_size": 32,
    "in_channels": 4,
    "model_channels": 320,
    "out_channels": 4,
    "num_res_blocks": [2, 2, 2, 2],
    "dropout": 0,
    "channel_mult": (1, 2, 4, 4),
    "num_heads": 8,
    "use_spatial_transformer": True,
    "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
    "transformer_depth_middle": 1,
    "context_dim": 768,
    "use_linear_in_transformer": False,
    "legacy": False,
    "use_temporal_attention": False,
    "adm_in_channels": None,
}
WAN_CLIP = (33, 480, 832), (512, 4096), 16, 4
CASES = {
    "sd-1.5": Case("SD15", SD15, (1, 512, 512), (77, 768), 4, 1, ("inversion", "guided")),  # no temporal attention
    "wan-1.3b": Case("WAN21_T2V", WAN | {"dim": 1536, "ffn_dim": 8960, "num_heads": 12, "num_layers": 30}, *WAN_CLIP),
    "wan-14b": Case("WAN21_T2V", WAN | {"dim": 5120, "ffn_dim": 13824, "num_heads": 40, "num_layers": 40}, *WAN_CLIP),
}


class LatentsAlone:
    """A VAE that is not there: the latents are random."""

    def __init__(self, case: Case):
        step = case.frames
        self.latent_channels = case.channels
        self.upscale_ratio = 8 if step == 1 else (lambda n: max(0, n * step - step + 1), 8, 8)


def measure(case: Case, stage: str, clip: tuple[int, int, int], dtype: str) -> dict[str, float]:
    """Seconds, and MiB of the weights and at the peak beside them, of one step."""
    from ..backbones.comfy.loading import from_comfy
    from ..backbones.comfy.text import prompt_of
    from ..engine.edit import edit
    from ..engine.inversion import add_noise, invert
    from ..engine.plan import PLAIN, EditPlan
    from ..methods.str_match import STRLatentOptimizer

    torch.manual_seed(0)
    patcher = random_patcher(case.kind, case.config, getattr(torch, dtype))
    weights = sum(p.numel() * p.element_size() for p in patcher.model.parameters())
    backbone = from_comfy(patcher, LatentsAlone(case))
    latents = wire_latents(backbone.codec.layout.latent_frames(clip[0]), clip, case)
    source, target = (prompt_of([[torch.randn(1, *case.text), {}]]) for _ in range(2))
    noised = add_noise(backbone, latents, source, steps=1)
    plan = EditPlan((STRLatentOptimizer(levels="all"),)) if stage == "str" else PLAIN

    def run() -> None:
        if stage == "inversion":
            invert(backbone, latents, source, steps=1, convention="paper")
        else:
            edit(backbone, noised, target, plan=plan, guidance=5.0)

    on_gpu = torch.cuda.is_available() and backbone.denoiser.device.type == "cuda"
    if on_gpu:
        run()  # kernels are chosen the first time, and weights loaded
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    before, start = _peak(on_gpu), time.perf_counter()
    run()
    if on_gpu:
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
    return {"s": time.perf_counter() - start, "weights": weights / MIB, "peak": (_peak(on_gpu) - before) / MIB}


def wire_latents(frames: int, clip: tuple[int, int, int], case: Case) -> Tensor:
    size = (clip[1] // 8, clip[2] // 8)
    if case.frames == 1:
        return torch.randn(clip[0], case.channels, *size)
    return torch.randn(1, case.channels, frames, *size)


def _peak(on_gpu: bool) -> int:
    """Bytes: what torch held at most on a GPU, what the process had at most in main memory."""
    return torch.cuda.max_memory_allocated() if on_gpu else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--comfyui", required=True, help="a checkout; run this with its Python")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cpu", "cuda"))
    parser.add_argument("--dtype", default="", choices=("", "float32", "bfloat16", "float16"))
    parser.add_argument("--model", action="append", choices=CASES)
    parser.add_argument("--clip", default="", help="frames x height x width, where the model's own does not fit")
    parser.add_argument("--stage", choices=STAGES, help="one alone, in this process, as JSON")
    options = parser.parse_args()
    dtype = options.dtype or ("float32" if options.device == "cpu" else "float16")
    models = options.model or list(CASES)
    if options.stage:
        start_core(options.comfyui, options.device == "cpu")
        clip = tuple(map(int, options.clip.split("x"))) if options.clip else CASES[models[0]].clip
        print(json.dumps(measure(CASES[models[0]], options.stage, clip, dtype)))
        return
    print(f"| model, {options.device} {dtype} | clip | step | s | weights MiB | peak beside MiB |")
    print("|---|---|---|---|---|---|")
    for model in models:
        clip = options.clip or "x".join(map(str, CASES[model].clip))
        for stage in CASES[model].stages:
            told = ["--comfyui", options.comfyui, "--device", options.device, "--dtype", dtype, "--model", model]
            command = [sys.executable, "-m", __spec__.name, *told, "--clip", clip, "--stage", stage]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:  # killed, or out of memory
                why = (done.stderr.strip().splitlines() or ["killed"])[-1][:60]
                print(f"| {model} | {clip} | {stage} | - | - | {why} |", flush=True)
                continue
            got = json.loads(done.stdout.strip().splitlines()[-1])
            figures = f"{got['s']:.1f} | {got['weights']:.0f} | {got['peak']:.0f}"
            print(f"| {model} | {clip} | {stage} | {figures} |", flush=True)


if __name__ == "__main__":
    main()
