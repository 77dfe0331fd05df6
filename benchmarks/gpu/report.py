"""What a run on a GPU found: lines that pass or fail, tables, and what its time did not reach."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch


@dataclass
class Report:
    """Collects findings in order, and writes them down after each, so that a run that is cut off leaves what it has."""

    out: Path
    heading: str
    deadline: float  # on `time.monotonic`
    lines: list[str] = field(default_factory=list)
    tables: dict[str, list[str]] = field(default_factory=dict)
    missed: list[str] = field(default_factory=list)
    failed: int = 0

    @property
    def left(self) -> float:
        """Seconds until the deadline."""
        return self.deadline - time.monotonic()

    def attempt(self, name: str, call: Callable[[], None], seconds: float = 0.0) -> None:
        """Runs one part, unless fewer seconds are left than it is thought to take. What it raises is a failure, and the
        next part runs all the same."""
        if self.left <= seconds:
            self.missed.append(name)
            self.write()
            return
        started = time.monotonic()
        try:
            call()
        except Exception as error:  # a report of failures must outlive each of them
            self.fail(name, f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}")
            (self.out / "errors.txt").open("a").write(f"{name}\n{traceback.format_exc()}\n")
        finally:
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        self.say(f"     {name}: {time.monotonic() - started:.1f} s, {self.left:.0f} s left", kept=False)
        self.write()

    def passed(self, name: str, text: str) -> None:
        self.say(f"PASS {name}: {text}")

    def fail(self, name: str, text: str) -> None:
        self.failed += 1
        self.say(f"FAIL {name}: {text}")

    def judge(self, right: bool, name: str, text: str) -> None:
        (self.passed if right else self.fail)(name, text)

    def say(self, line: str, kept: bool = True) -> None:
        print(line, flush=True)
        if kept:
            self.lines.append(line)

    def row(self, table: str, columns: str, cells: list[str]) -> None:
        """One row of a table; `columns` heads it, names with | between."""
        if table not in self.tables:
            self.tables[table] = [f"| {columns} |", "|" + "---|" * (columns.count("|") + 1)]
        self.tables[table].append(f"| {' | '.join(cells)} |")
        self.say(f"     {' | '.join(cells)}", kept=False)
        self.write()

    def write(self) -> None:
        parts = [self.heading, "```", *self.lines, "```"]
        for title, rows in self.tables.items():
            parts += ["", f"## {title}", "", *rows]
        if self.missed:
            parts += ["", "Not reached before the deadline: " + ", ".join(self.missed) + "."]
        (self.out / "gpu.md").write_text("\n".join(parts) + "\n")
