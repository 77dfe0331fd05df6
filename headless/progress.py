"""A workflow's events as lines on a terminal, or in a log."""

from __future__ import annotations

import sys
from typing import TextIO

from .graph import Graph, title

WIDTH = 30
LOG_LINES = 4  # a step bar that is not on a terminal is written so many times


class Progress:
    """Shows which node runs and how far it is. Call it with every event."""

    def __init__(self, graph: Graph, out: TextIO | None = None):
        self.graph, self.out = graph, out or sys.stderr
        self.open = False  # a bar is on the line

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
            self.open = True
            filled = WIDTH * done // total
            print(f"\r    [{'#' * filled:<{WIDTH}}] {done}/{total}", end="", file=self.out, flush=True)
        elif done and done * LOG_LINES // total > (done - 1) * LOG_LINES // total:
            print(f"    {done}/{total}", file=self.out, flush=True)

    def end(self) -> None:
        """Leaves the bar's line."""
        if self.open:
            print(file=self.out)
        self.open = False
