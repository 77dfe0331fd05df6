"""What COVE's correspondences and its attention cost: operations as the paper counts them, time and memory as measured.

    python -m weft.benchmarks.cove_cost [--device cuda] [--out benchmarks/results/cove_cost_cpu.md]

The first table is the paper's table 4: 20 frames of 64x64 places with features of 640. The second is one attention
layer with lists of three matches in every other frame, merged or not, gathered at once or a few queries at a time;
the third counts what a layer's call asks of the device.
"""

from __future__ import annotations

import argparse
import datetime
import sys
from functools import partial
from pathlib import Path

import torch

from ..engine.correspondence import Correspondence
from ..kernels import Lists, gather_attention, merged_attention, windowed_topk
from ..methods.correspondence_attention import all_lists, side_by_side
from .kernels import cpu_name
from .measure import Operations, milliseconds, peak_bytes

FRAMES, SIDE, SIZE, K = 20, 64, 640, 3
WINDOWS = {3: 0.448, 9: 4.03, 15: 11.2}  # side -> the paper's figure, in 10^9
LAYER = {"cpu": (20, 32, 8, 40), "cuda": (20, 64, 8, 40)}  # frames, side, heads, head size


def products(window: int) -> tuple[int, int]:
    """(as the paper counts, a whole window for every place; with windows clipped at the borders)."""
    reach = window // 2
    along = sum(min(i + reach, SIDE - 1) - max(i - reach, 0) + 1 for i in range(SIDE))
    return (FRAMES - 1) * SIDE**2 * window**2 * SIZE, (FRAMES - 1) * along**2 * SIZE


def matching(device: torch.device, runs: int) -> list[str]:
    features = torch.randn(FRAMES, SIDE**2, SIZE, generator=torch.Generator().manual_seed(0)).to(device)
    features = torch.nn.functional.normalize(features, dim=-1)
    lines = [
        "| window | products, paper | by its formula | windows clipped | ms, one direction | peak MB | table MB |",
        "|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for window, paper in WINDOWS.items():
        call = partial(windowed_topk, features, SIDE, SIDE, window=window, k=K)
        whole, clipped = products(window)
        cells = [f"{window}", f"{paper} G", f"{whole / 1e9:.3f} G", f"{clipped / 1e9:.3f} G"]
        cells += [f"{milliseconds(call, device, runs):.0f}", f"{peak_bytes(call, device) / 1e6:.0f}"]
        lines.append(f"| {' | '.join(cells)} | {2 * call()[0].nbytes / 1e6:.1f} |")
        print(lines[-1], file=sys.stderr, flush=True)
    whole = (FRAMES - 1) * SIDE**4 * SIZE
    lines.append(f"| none | 241 G | {whole / 1e9:.1f} G | | | | |")
    return lines


def attention(device: torch.device, runs: int) -> list[str]:
    frames, side, heads, size = LAYER[device.type]
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, heads, frames * side**2, size, generator=generator).to(device)
    q = x[:, :, : side**2]
    lists = Lists(tables(frames, side, device)[0], frames * side**2)
    beside = Lists(side_by_side(lists.index, K), lists.tokens)
    calls = {
        "not merged, gathered at once": partial(gather_attention, q, x, x, lists, backend="reference"),
        "not merged, as the node does it": partial(gather_attention, q, x, x, lists),
        "half merged, gathered at once": partial(merged_attention, q, x, x, lists, backend="reference"),
        "half merged, as the node does it": partial(merged_attention, q, x, x, lists),
        "pairs merged, as the node does it": partial(merged_attention, q, x, x, beside, matching="neighbours"),
    }
    lines = ["| lists | ms a frame | peak MB |", "|---|--:|--:|"]
    for name, call in calls.items():
        lines.append(f"| {name} | {milliseconds(call, device, runs):.0f} | {peak_bytes(call, device) / 1e6:.0f} |")
        print(lines[-1], file=sys.stderr, flush=True)
    return lines


def tables(frames: int, side: int, device: torch.device) -> torch.Tensor:
    """The lists of a made-up clip, [F, N, L]."""
    generator = torch.Generator().manual_seed(0)
    matches = torch.randint(side**2, (2, frames - 1, side**2, K), generator=generator, dtype=torch.int32)
    return all_lists(Correspondence(*matches, (side, side), 0, 9, ""), 0, device)


def operations(device: torch.device) -> list[str]:
    """Of half merged lists: counted here with few tokens, of which a call on any device takes all at once."""
    side, heads, size = 6, 2, 4
    lines = ["| frames | one call for all | frame by frame |", "|--:|--:|--:|"]
    for frames in (2, 8, LAYER[device.type][0]):
        x = torch.randn(1, heads, frames, side**2, size, device=device)
        tokens = x.flatten(2, 3)
        index = tables(frames, side, device)
        whole, parts = (Lists(part, tokens.shape[2]) for part in (index.flatten(0, 1), index[0]))
        with Operations() as at_once:
            merged_attention(tokens, tokens, tokens, whole, backend="chunked")
        with Operations() as by_frame:
            for frame in range(frames):
                merged_attention(x[:, :, frame], tokens, tokens, parts, backend="chunked")
        lines.append(f"| {frames} | {at_once.count} | {by_frame.count} |")
        print(lines[-1], file=sys.stderr, flush=True)
    return lines


TEXT = """# What COVE costs

{date}, `{command}`, {name}, torch {torch}. {clock} Peak: memory above the inputs.

## Finding correspondences

{frames} frames of {side}x{side} places, features of {size}, {k} matches, one direction of time; table 4 of the paper.
Its figures are the products of whole windows, one direction; without a window the same formula gives 204, not the 241
it prints. The table is both directions, for the whole clip.

{matching}

## Attending along them

One frame of one layer, one row: {layer[0]} frames of {layer[1]}x{layer[1]} tokens, {layer[2]} heads of {layer[3]},
float32, {list} tokens in a list. Queries, keys and values are one tensor, as with `tokens` output.

{attention}

Merging was made to save the memory of gathered tokens, but tokens must be gathered before they are merged. Taking a
few queries at a time is what bounds memory, at any length of the clip.

## What a call asks of the device

Operations of torch, views left out, for the half merged lists of one layer's call: about the launches on a GPU
without Triton. More tokens than a chunk holds take as many again for each chunk. The fused kernel is one launch, and
what lays its tokens out.

{operations}"""


def report(device: torch.device, runs: int) -> str:
    gpu = device.type == "cuda"
    return TEXT.format(
        date=datetime.date.today(),
        command=" ".join(["python -m weft.benchmarks.cove_cost", *sys.argv[1:]]),
        name=torch.cuda.get_device_name(device) if gpu else f"{cpu_name()}, {torch.get_num_threads()} thread(s)",
        torch=torch.__version__,
        clock="Wall time." if gpu else "CPU time.",
        frames=FRAMES, side=SIDE, size=SIZE, k=K, layer=LAYER[device.type], list=(LAYER[device.type][0] - 1) * K,
        matching="\n".join(matching(device, runs)),
        attention="\n".join(attention(device, runs)),
        operations="\n".join(operations(device)),
    )  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--runs", type=int, default=1, help="timed calls, of which the median counts")
    parser.add_argument("--out", type=Path, help="a markdown file to write; default: print")
    options = parser.parse_args()
    text = report(torch.device(options.device), options.runs) + "\n"
    if options.out:
        options.out.write_text(text)
    else:
        print(text)
