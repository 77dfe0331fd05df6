"""Rebuilds the workflows from `graphs.py` with ComfyUI's own frontend, in both formats.

    python -m weft.workflows.build                  # in a ComfyUI of its own: .venv/bin/python after `make demo` can
    python -m weft.workflows.build --thumbnails     # also runs them, for the pictures of ComfyUI's template browser
    python -m weft.workflows.build --only coupled   # those whose names have this in them
    python -m weft.workflows.build --server http://127.0.0.1:8188    # in a running one that has this pack

It needs a browser: see `browser.py`.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch

from ...headless.client import Server
from ...headless.comfyui import find_comfyui
from ...headless.demo import frames_from, with_frames
from ...headless.distributed import COLLECTOR, find_distributed, install_distributed
from ...headless.graph import read_graph
from ...headless.progress import Progress
from ...headless.server import comfyui_server
from ...toyworld import clip
from .browser import obstacle, visit
from .graphs import GRAPHS

FOLDER = Path(__file__).resolve().parents[1]
COLUMNS = 4  # frames in a thumbnail
ENLARGE = 2


def rebuild(server: Server, names: list[str], screenshot: Path | None = None) -> None:
    """Writes `<name>.json` and `api/<name>.json` of some graphs."""
    shot = [{"screenshot": str(screenshot)}] if screenshot else []
    built = visit(server.url, [{"build": GRAPHS[name]} for name in names] + shot)
    for name, formats in zip(names, built):
        for path, content in ((f"{name}.json", formats["workflow"]), (f"api/{name}.json", formats["api"])):
            (FOLDER / path).parent.mkdir(exist_ok=True)
            (FOLDER / path).write_text(json.dumps(content, indent=1) + "\n")
            print(FOLDER / path)


def make_thumbnail(server: Server, name: str) -> None:
    """Runs a workflow and writes `<name>.jpg`: frames of the source, and below them those of the edit."""
    from PIL import Image

    graph = with_frames(read_graph(FOLDER / "api" / f"{name}.json"))
    server.upload(clip.CLIP)
    edit = frames_from(server.run(graph, Progress(graph, sys.stdout)))
    rows = clip.read_video(clip.CLIP), edit
    sheet = torch.cat([torch.cat(list(frames[:: len(frames) // COLUMNS][:COLUMNS]), 1) for frames in rows])
    picture = Image.fromarray((sheet * 255).round().byte().numpy())
    size = picture.width * ENLARGE, picture.height * ENLARGE
    picture.resize(size, Image.Resampling.NEAREST).save(FOLDER / f"{name}.jpg", quality=90)
    print(FOLDER / f"{name}.jpg")


@contextmanager
def server_of_our_own() -> Iterator[Server]:
    comfyui = find_comfyui()
    if comfyui is None:
        sys.exit("weft: no ComfyUI found: set COMFYUI_PATH, or name a running one with --server")
    flags = [] if torch.cuda.is_available() else ["--cpu"]
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        if distributed := find_distributed():
            install_distributed(distributed, base)
        with comfyui_server(comfyui, base, arguments=flags) as server:
            yield server


def _can_be_built(name: str) -> bool:
    """A graph for several machines needs the nodes of ComfyUI-Distributed."""
    wanted = any(node["type"] == COLLECTOR for column in GRAPHS[name].values() for node in column.values())
    if wanted and not find_distributed():
        print(f"weft: '{name}' is left as it is: no ComfyUI-Distributed found, COMFYUI_DISTRIBUTED_PATH names none")
    return not wanted or find_distributed() is not None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--server", help="a running ComfyUI with this pack (default: start one)")
    parser.add_argument("--thumbnails", action="store_true", help="run the workflows and write <name>.jpg")
    parser.add_argument("--only", default="", help="graphs whose names have this in them (default: all)")
    parser.add_argument("--screenshot", type=Path, help="write a picture of the last graph here")
    options = parser.parse_args()
    if reason := obstacle():
        sys.exit(f"weft: {reason}")
    with nullcontext(Server(options.server)) if options.server else server_of_our_own() as server:
        names = [name for name in GRAPHS if options.only in name and _can_be_built(name)]
        rebuild(server, names, options.screenshot)
        if options.thumbnails:
            for name in names:
                make_thumbnail(server, name)


if __name__ == "__main__":
    main()
