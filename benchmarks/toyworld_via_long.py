"""A minute of video with gather-swap: does memory stay, is time linear, and is the end as good as the start?

    python -m weft.benchmarks.toyworld_via_long                # clips of 96 and 1,440 frames, each in its own process
    python -m weft.benchmarks.toyworld_via_long --frames 96    # one of them, in this one

`python -m weft.benchmarks.toyworld_via table` puts what it found into a table.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ..backbones.diffusers.loading import load_backbone
from ..engine.edit import edit
from ..engine.inversion import add_noise
from ..engine.plan import PLAIN
from ..engine.source import Trajectory
from ..methods.gather_swap import GatherSwap
from ..toyworld import world
from ..toyworld.measure import consistency
from ..toyworld.reading import find_sprites
from .cases import WEIGHTS
from .measure import peak_bytes
from .rows import RESULTS, ROOT

RESULT = RESULTS / "toyworld_via_long.json"
GUIDANCE, IMAGE_GUIDANCE = 2.0, 1.5  # as in `toyworld_via`
LENGTHS, CHUNK, STEPS = (96, 1440), 96, 5
SEED = 60_001  # the first from 60,000 on whose sprite bounces; other paths take the whole clip for one way across
HEADER = """
## A minute of video

Gather-swap with 4 frames, `chunk_frames` {chunk}, {steps} steps, one clip of each length, each in a process of its own:
`python -m weft.benchmarks.toyworld_via_long`. Tensors: the most that tensors made by one step of `edit` take at once.
Kept: the frames and the trajectory, which are in memory before the edit starts and grow with the clip. Process: all of
its memory before the edit, and the most during it. The sprite bounces about the picture, so that all chunks show it in
like places. Two chunks differ by the root mean square difference of the sprite's color, the mean over their frames.
"""


def run() -> None:
    """Edits a clip of each length in a process of its own, so that peak memory is that run's alone."""
    rows = []
    for frames in LENGTHS:
        command = [sys.executable, "-m", "weft.benchmarks.toyworld_via_long", "--frames", str(frames)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        print(rows[-1], flush=True)
    RESULT.write_text(json.dumps(rows, indent=1) + "\n")


def one(frames: int) -> dict:
    """One clip with gather-swap: seconds, memory, and how its chunks compare."""
    backbone = load_backbone(WEIGHTS / "instruct", name="toyworld/instruct")
    generator = torch.Generator().manual_seed(SEED)
    source = world.draw(1, generator, frames=frames)
    target = world.edit(source, generator, ("color",))
    pictures = world.render(source)[0][0].movedim(1, -1)
    latents, text = backbone.codec.encode(pictures), backbone.text.embed(world.instructions(source, target)[0])

    def edited(steps: int) -> tuple[Trajectory, Callable[[], Tensor]]:
        trajectory = add_noise(backbone, latents, backbone.text.embed(""), steps=steps)
        numbers = {"guidance": GUIDANCE, "image_guidance": IMAGE_GUIDANCE, "chunk_frames": CHUNK}
        return trajectory, partial(edit, backbone, trajectory, text, plan=PLAIN.then(GatherSwap()), **numbers)

    trajectory, sample = edited(STEPS)
    figures = {"frames": frames, "kept": pictures.nbytes + trajectory.latents.nbytes, "before": reset_peak()}
    started = time.process_time()
    result = sample()
    figures |= {"seconds": time.process_time() - started, "peak": process_memory("VmHWM")}
    figures["tensors"] = peak_bytes(edited(1)[1])  # last: the profiler itself takes hundreds of MB
    return figures | _along(backbone.codec.decode(result).movedim(-1, 1)[None], source, target)


def reset_peak() -> int:
    """Bytes of main memory that this process has, as Linux counts them; the most it has is counted anew from here."""
    Path("/proc/self/clear_refs").write_text("5")
    return process_memory("VmRSS")


def process_memory(name: str) -> int:
    (line,) = [x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(name)]
    return 1024 * int(line.split()[1])


def _along(video: Tensor, source: world.Clips, target: world.Clips) -> dict:
    """How chunks of the clip compare: neighbours, and the first and the last."""
    sprites = find_sprites(video, world.render_background(target))
    color = torch.stack([v.mean(0) for v in sprites.value[0].split(CHUNK)])
    right = (sprites.color[0] == target.color) & (sprites.shape[0] == target.shape)
    spread = {name: f.item() for name, f in consistency(video, target).items()}
    accuracy = [part.float().mean().item() for part in right.split(CHUNK)]
    return spread | {
        "neighbours": color.diff(dim=0).square().mean(1).sqrt().tolist(),
        "first_to_last": (color[0] - color[-1]).square().mean().sqrt().item(),
        "accuracy_first": accuracy[0],
        "accuracy_last": accuracy[-1],
        "accuracy": sum(accuracy) / len(accuracy),
    }


def long_table() -> list[str]:
    if not RESULT.exists():
        return []
    rows, mb = json.loads(RESULT.read_text()), 2**20
    lines = [HEADER.format(chunk=CHUNK, steps=STEPS)]
    heads = ("frames", "CPU seconds", "a frame", "tensors", "kept", "process before", "process at most")
    lines += ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for r in rows:
        cells = [f"{r['seconds']:.0f}", f"{1e3 * r['seconds'] / r['frames']:.0f} ms"]
        cells += [f"{r[n] / mb:.0f} MB" for n in ("tensors", "kept", "before", "peak")]
        lines.append(f"| {r['frames']} | " + " | ".join(cells) + " |")
    heads = ("frames", "color spread", "neighbouring chunks differ by: mean, most", "first and last chunk by")
    heads += ("accuracy", "of the first chunk", "of the last")
    lines += ["\n| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for r in rows:
        near = r["neighbours"]
        cells = [f"{r['color_spread']:.3f}", f"{sum(near) / len(near):.4f}, {max(near):.4f}" if near else ""]
        cells += [f"{r['first_to_last']:.4f}" if near else ""]
        cells += [f"{r['accuracy' + n]:.2f}" for n in ("", "_first", "_last")]
        lines.append(f"| {r['frames']} | " + " | ".join(cells) + " |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, help="edit one clip of this length here, and print what was measured")
    frames = parser.parse_args().frames
    if frames is None:
        run()
    else:
        print(json.dumps(one(frames)))


if __name__ == "__main__":
    main()
