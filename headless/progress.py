"""A workflow's events as lines and bars on a terminal, or as lines in a log."""

from __future__ import annotations

import sys
from typing import TextIO

from tqdm import tqdm

from .graph import Graph, title

BAR = "    [{elapsed}<{remaining}] {bar:30} {n_fmt}/{total_fmt}"
LOG_LINES = 4  # a bar that is not on a terminal is written so many times


class Progress:
    """Shows which node runs and how far it is. Call it with every event."""

    def __init__(self, graph: Graph, out: TextIO | None = None):
        self.graph, self.out = graph, out or sys.stderr
        self.steps: tqdm | None = None  # the bar that is on the line

    def __call__(self, kind: str, data: dict) -> None:
        if kind == "execution_cached" and data["nodes"]:
            self.line(f"{len(data['nodes'])} of {len(self.graph)} nodes are as before")
        elif kind == "executing" and data["node"] in self.graph:
            self.line(title(self.graph, data["node"]))
        elif kind == "progress" and data["max"] > 1:
            self.bar(int(data["value"]), int(data["max"]))
        elif kind.startswith("execution_") or kind == "executing":
            self.end()

    def line(self, text: str) -> None:
        """A line of its own."""
        self.end()
        print(f"  {text}", file=self.out, flush=True)

    def bar(self, done: int, total: int) -> None:
        """`done` of `total` steps."""
        if self.out.isatty():
            if self.steps is None or self.steps.total != total:
                self.end()
                self.steps = tqdm(total=total, file=self.out, bar_format=BAR)
            self.steps.update(done - self.steps.n)
        elif done and done * LOG_LINES // total > (done - 1) * LOG_LINES // total:
            print(f"    {done}/{total}", file=self.out, flush=True)

    def end(self) -> None:
        """Leaves the bar's line."""
        if self.steps is not None:
            self.steps.close()
        self.steps = None
