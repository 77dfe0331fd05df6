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
from typing import TYPE_CHECKING

import torch

from ...headless.client import Server
from ...headless.comfyui import find_comfyui
from ...headless.demo import frames_from, with_frames
from ...headless.distributed import COLLECTOR, find_distributed, for_workers, install_distributed
from ...headless.graph import read_graph
from ...headless.progress import Progress
from ...headless.server import comfyui_server
from ...toyworld import clip
from .browser import obstacle, visit
from .cards import card, rows, shows_its_graph
from .graphs import GRAPHS

if TYPE_CHECKING:
    from PIL.Image import Image

FOLDER = Path(__file__).resolve().parents[1]


def rebuild(server: Server, names: list[str], screenshot: Path | None = None) -> None:
    """Writes `<name>.json` and `api/<name>.json` of some graphs."""
    shot = [{"screenshot": str(screenshot)}] if screenshot else []
    built = visit(server.url, [{"build": GRAPHS[name]} for name in names] + shot)
    for name, formats in zip(names, built):
        for path, content in ((f"{name}.json", formats["workflow"]), (f"api/{name}.json", formats["api"])):
            (FOLDER / path).parent.mkdir(exist_ok=True)
            (FOLDER / path).write_text(json.dumps(content, indent=1) + "\n")
            print(FOLDER / path)


def make_thumbnails(server: Server, names: list[str]) -> None:
    """Writes `<name>.jpg` of each: what a run makes of the sample clip, or the graph where its model does not ship."""
    graphs = [name for name in names if shows_its_graph(name)]
    with tempfile.TemporaryDirectory() as folder:
        seen = {name: str(Path(folder, f"{name}.png")) for name in graphs}
        jobs = [({"build": GRAPHS[name]}, {"picture": None, "path": path}) for name, path in seen.items()]
        visit(server.url, [job for pair in jobs for job in pair], sharp=True)
        for name in names:
            picture = _opened(seen[name]) if name in seen else _before_and_after(server, name)
            card(name, picture).save(FOLDER / f"{name}.jpg", quality=88)
            print(FOLDER / f"{name}.jpg")


def _before_and_after(server: Server, name: str) -> Image:
    graph = with_frames(read_graph(FOLDER / "api" / f"{name}.json"))
    if _is_shared_out(name):
        graph = for_workers(graph, 0)  # the master alone does all of it
    server.upload(clip.CLIP)
    return rows(clip.read_video(clip.CLIP), frames_from(server.run(graph, Progress(graph, sys.stdout))))


def _opened(path: str) -> Image:
    from PIL import Image

    return Image.open(path).convert("RGB")


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
    if not _is_shared_out(name) or find_distributed():
        return True
    print(f"weft: '{name}' is left as it is: no ComfyUI-Distributed found, COMFYUI_DISTRIBUTED_PATH names none")
    return False


def _is_shared_out(name: str) -> bool:
    return any(node["type"] == COLLECTOR for column in GRAPHS[name].values() for node in column.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--server", help="a running ComfyUI with this pack (default: start one)")
    parser.add_argument("--thumbnails", action="store_true", help="also make <name>.jpg, for which most are run")
    parser.add_argument("--only", default="", help="graphs whose names have this in them (default: all)")
    parser.add_argument("--screenshot", type=Path, help="write a picture of the last graph here")
    options = parser.parse_args()
    if reason := obstacle():
        sys.exit(f"weft: {reason}")
    with nullcontext(Server(options.server)) if options.server else server_of_our_own() as server:
        names = [name for name in GRAPHS if options.only in name and _can_be_built(name)]
        rebuild(server, names, options.screenshot)
        if options.thumbnails:
            make_thumbnails(server, names)


if __name__ == "__main__":
    main()
