"""The long run, whose figures are committed.

    python -m weft.tests.fuzz --prompts 2000         # with .venv's Python, where ComfyUI is found
    python -m weft.tests.fuzz --seeds 12,345         # these again, after a mend
    python -m weft.tests.fuzz --stages               # only the cancels, at every stage; no ComfyUI

Keeps a row for each prompt in benchmarks/results/reliability.jsonl, so a run that is stopped goes on where it was, and
makes reliability.md of them. A bounded run is among the tests.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

from weft.benchmarks.rows import RESULTS, origin
from weft.headless.comfyui import find_comfyui
from weft.headless.server import comfyui_server
from weft.tests.fuzz.prompts import prompt
from weft.tests.fuzz.report import text
from weft.tests.fuzz.trial import prepare, still_works, try_one

ROWS = RESULTS / "reliability.jsonl"
LOOK_EVERY = 50  # prompts between plain edits, which show that the server works


def memory(base: Path) -> float:
    """MB that the server with this folder takes; 0 where that cannot be read."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if str(base).encode() in (process / "cmdline").read_bytes() and int(process.name) != os.getpid():
                pages = int((process / "statm").read_text().split()[1])
                return pages * os.sysconf("SC_PAGE_SIZE") / 2**20
        except OSError:
            continue
    return 0.0


def rows() -> list[dict]:
    return [json.loads(line) for line in ROWS.read_text().splitlines()] if ROWS.exists() else []


def keep(**row) -> None:
    with ROWS.open("a") as stream:
        stream.write(json.dumps(row) + "\n")


def send(seeds: Iterable[int], comfyui: Path) -> None:
    """Tries these prompts on one server and keeps a row of each."""
    base = Path(tempfile.mkdtemp())
    version = re.search(r'"(\d[\d.]*)"', (comfyui / "comfyui_version.py").read_text())[1]
    about = {"server": base.name, "comfyui": version, "commit": origin()["commit"]}
    try:
        prepare(base)
        with comfyui_server(comfyui, base, arguments=["--cpu"]) as server:
            for sent, seed in enumerate(seeds):
                start = time.monotonic()
                outcome, by, told = try_one(server, prompt(seed))
                row = {"seconds": round(time.monotonic() - start, 2), "mb": round(memory(base)), **about}
                row |= {"told": ascii(told[:300])[1:-1]} if outcome == "ugly" else {}
                works = {"works": still_works(server)} if outcome == "ugly" or sent % LOOK_EVERY == 0 else {}
                keep(what="prompt", seed=seed, outcome=outcome, by=by, **row, **works)
                if outcome == "ugly" or not works.get("works", True):
                    print(seed, outcome, by, row["told"], works, flush=True)
    finally:
        shutil.rmtree(base, ignore_errors=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=2000)
    parser.add_argument("--seeds", help="only these prompts, whether they were tried or not: 12,345")
    parser.add_argument("--stages", action="store_true", help="only the cancels")
    options = parser.parse_args()
    if options.stages:
        from weft.tests.fuzz.stages import STAGES, World, cancelled

        world = World()
        for stage in STAGES:
            keep(what="cancel", stage=stage, cancels=cancelled(stage, world), commit=origin()["commit"])
    else:
        comfyui = find_comfyui()
        if comfyui is None:
            raise SystemExit("weft: no ComfyUI found: set COMFYUI_PATH")
        done = {row["seed"] for row in rows() if row["what"] == "prompt"}
        missing = [seed for seed in range(options.prompts) if seed not in done]
        send([int(seed) for seed in options.seeds.split(",")] if options.seeds else missing, comfyui)
    ROWS.with_suffix(".md").write_text(text(rows()))


if __name__ == "__main__":
    main()
