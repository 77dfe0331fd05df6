"""The demo: ComfyUI edits the clip that ships with the pack, and the result is held against the truth.

    python -m weft.headless.demo    # or: make demo

Starts ComfyUI without a browser, runs `workflows/api/str_match.json` with MODEL twice (with STR-Match, and at strength
0, which is the plain DDIM edit), stops it and writes to `output/demo`: the edit; source, both edits and truth as a
picture and as a GIF that plays them; and their figures. Where there is no ComfyUI, the same stages run through the
library.
"""

from __future__ import annotations

import argparse
import json
import platform
import signal
import sys
import tempfile
import time
from importlib.metadata import version
from io import BytesIO
from pathlib import Path

import torch
from torch import Tensor

from ..toyworld import clip
from ..toyworld.measure import measure
from ..toyworld.report import contact_sheet, side_by_side
from .client import Result, Server, WorkflowError
from .comfyui import ROOT, find_comfyui
from .graph import Graph, changed, find_node, read_graph
from .library import edits, prompts, settings
from .progress import Progress
from .server import comfyui_server

WORKFLOW = ROOT / "workflows" / "api" / "str_match.json"
MODEL = "toyworld/things"  # its shapes are crisper than those of the workflow's own
OUTPUT = ROOT / "output" / "demo"
OPTIMIZER = "WeftSTRLatentOptimizer"
FIGURES = ("target_accuracy", "psnr_truth", "psnr_background", "centroid_error_px")
FRAMES = "weft_frames"  # the node that the demo adds, to get the frames as they are before video compression


def demo_graph() -> Graph:
    """The workflow, with the demo's model."""
    return changed(read_graph(WORKFLOW), {"WeftLoadModel.model": MODEL})


def demo(comfyui: Path | None, graph: Graph, out: Path = OUTPUT) -> dict:
    """Runs the workflow and writes `edit.mp4`, `compare.png`, `compare.gif` and `metrics.json` into `out`; returns the
    metrics.

    Args:
        comfyui: a checkout to run it in, or None for the library.
    """
    start = time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    run = _through_library if comfyui is None else _through_comfyui
    edit, baseline = run(comfyui, graph, out)
    seconds = round(time.monotonic() - start, 1)
    source, truth = (clip.frames_of(clips) for clips in (clip.source_clip(), clip.edited_clip()))
    rows = {"source": source, "plain DDIM edit": baseline, "STR-Match edit": edit, "ground truth": truth}
    contact_sheet(list(rows.values()), out / "compare.png", labels=list(rows))
    side_by_side(list(rows.values()), out / "compare.gif", list(rows))
    metrics = {
        "edit": _figures(edit),
        "baseline": _figures(baseline),
        "via": "library" if comfyui is None else "comfyui",
        "seconds": seconds,
        "workflow": WORKFLOW.relative_to(ROOT).as_posix(),
        "model": settings(graph, "WeftLoadModel")["model"],
        "prompts": dict(zip(("source", "target", "negative"), prompts(graph))),
        "strength": settings(graph, OPTIMIZER)["strength"],
        "versions": {"python": platform.python_version()} | {name: version(name) for name in ("torch", "diffusers")},
    }
    (out / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    return metrics


def with_frames(graph: Graph) -> Graph:
    """The workflow with one more node, which shows the frames of the saved video as lossless pictures."""
    save = graph[find_node(graph, "SaveVideo")]
    images = graph[save["inputs"]["video"][0]]["inputs"]["images"]
    return {**graph, FRAMES: {"class_type": "PreviewImage", "inputs": {"images": images}}}


def frames_from(result: Result) -> Tensor:
    """[F, H, W, 3] in 0..1 that the node of `with_frames` showed."""
    import numpy as np
    from PIL import Image

    pictures = [np.asarray(Image.open(BytesIO(result.fetch(file))).convert("RGB")) for file in result.files(FRAMES)]
    return torch.from_numpy(np.stack(pictures)) / 255


def _through_comfyui(comfyui: Path, graph: Graph, out: Path) -> tuple[Tensor, Tensor]:
    """(edit, plain edit), and the workflow's own video as `edit.mp4`."""
    flags = [] if torch.cuda.is_available() else ["--cpu"]
    graph = with_frames(graph)
    log = out / "comfyui.log"
    with tempfile.TemporaryDirectory() as base:
        print(f"starting ComfyUI from {comfyui} (log: {log})", flush=True)
        with comfyui_server(comfyui, Path(base), arguments=flags, log=log) as server:
            server.upload(clip.CLIP)
            print("plain DDIM edit (strength 0)", flush=True)
            baseline = _run(server, changed(graph, {f"{OPTIMIZER}.strength": 0}))
            print("STR-Match edit", flush=True)
            edit = _run(server, graph)
            (video,) = edit.files(find_node(graph, "SaveVideo"))
            (out / "edit.mp4").write_bytes(edit.fetch(video))
            return frames_from(edit), frames_from(baseline)


def _run(server: Server, graph: Graph) -> Result:
    return server.run(graph, Progress(graph, sys.stdout))


def _through_library(_: None, graph: Graph, out: Path) -> tuple[Tensor, Tensor]:
    """The same without ComfyUI; frames are rounded as its pictures are."""
    progress, stages = Progress(graph, sys.stdout), set()

    def show(stage: str, done: int, total: int) -> None:
        if stage not in stages:
            progress.line(stage)
            stages.add(stage)
        progress.bar(done, total)

    strength = settings(graph, OPTIMIZER)["strength"]
    baseline, edit = edits(graph, clip.read_video(clip.CLIP), (0, strength), show)
    progress.end()
    clip.write_video(out / "edit.mp4", edit)
    return tuple((frames * 255).byte() / 255 for frames in (edit, baseline))


def _figures(frames: Tensor) -> dict[str, float]:
    measured = measure(frames.movedim(-1, 1)[None], clip.source_clip(), clip.edited_clip())
    return {name: round(measured[name].item(), 4) for name in FIGURES}


def _report(metrics: dict, out: Path) -> None:
    print(f"\n{'':20}" + "".join(f"{name:>20}" for name in FIGURES))
    for row, label in (("baseline", "plain DDIM edit"), ("edit", "STR-Match edit")):
        print(f"{label:20}" + "".join(f"{metrics[row][name]:20.2f}" for name in FIGURES))
    print(f"\n{metrics['seconds']} s via {metrics['via']}; see {out}: compare.gif, compare.png, edit.mp4, metrics.json")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--library", action="store_true", help="without ComfyUI")
    parser.add_argument("--out", type=Path, default=OUTPUT, help="default: output/demo")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # an exit stops ComfyUI, a kill would not
    try:
        comfyui = None if options.library else find_comfyui()
        if comfyui is None:
            print("running through the library, without ComfyUI: " + ("as asked" if options.library else "none found"))
        _report(demo(comfyui, demo_graph(), options.out), options.out)
    except (WorkflowError, ValueError, RuntimeError, OSError) as error:
        sys.exit(f"demo: {error}")


if __name__ == "__main__":
    main()
