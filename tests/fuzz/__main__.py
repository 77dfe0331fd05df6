"""The long run, whose figures are committed.

    python -m weft.tests.fuzz --prompts 2000    # with .venv's Python, where ComfyUI is found

Writes benchmarks/results/reliability.md. A bounded run is among the tests.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import tempfile
import time
from pathlib import Path

from weft.benchmarks.rows import RESULTS
from weft.headless.comfyui import find_comfyui
from weft.headless.server import comfyui_server
from weft.tests.fuzz.prompts import prompt
from weft.tests.fuzz.trial import Tally, prepare, still_works, try_one

SLOPE_EVERY = 50  # prompts between looks at the server's memory

TEXT = """# Reliability

`python -m weft.tests.fuzz --prompts {prompts}`, seeds 0 to {last}, ComfyUI {version}, {seconds:.0f} s. Each prompt is a
whole edit of a small clip by a random model, inversion and methods, with up to three inputs spoiled: other texts,
numbers, objects, lists, wires to other nodes, or none.

| what became of it | prompts |
|---|---|
{rows}

- Ugly refusals (an error of a node that is no ValueError, has more than one line or does not fit a screen): {ugly}.
- Prompts after which a plain edit did not run: {dead}.
- The server's memory: {first:.0f} MB after {every} prompts, {then:.0f} MB after all.
"""


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=2000)
    options = parser.parse_args()
    comfyui = find_comfyui()
    if comfyui is None:
        raise SystemExit("weft: no ComfyUI found: set COMFYUI_PATH")
    base, tally, dead, sizes, start = Path(tempfile.mkdtemp()), Tally(), 0, [], time.monotonic()
    try:
        prepare(base)
        with comfyui_server(comfyui, base, arguments=["--cpu"]) as server:
            for seed in range(options.prompts):
                tally.add(seed, *try_one(server, prompt(seed)))
                if seed % SLOPE_EVERY == SLOPE_EVERY - 1 or seed == options.prompts - 1:
                    dead += not still_works(server)
                    sizes.append(memory(base))
                    print(seed + 1, dict(tally.outcomes), f"{sizes[-1]:.0f} MB", *tally.ugly, sep="\n  ", flush=True)
    finally:
        shutil.rmtree(base, ignore_errors=True)
    version = re.search(r'"(\d[\d.]*)"', (comfyui / "comfyui_version.py").read_text())[1]
    text = TEXT.format(
        prompts=options.prompts,
        last=options.prompts - 1,
        version=version,
        seconds=time.monotonic() - start,
        rows="\n".join(f"| {outcome} | {count} |" for outcome, count in tally.outcomes.most_common()),
        ugly="; ".join(tally.ugly) or "0",
        dead=dead,
        first=sizes[0],
        then=sizes[-1],
        every=SLOPE_EVERY,
    )
    (RESULTS / "reliability.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
