"""The frame of a benchmark that takes long: a row a setting and clip, kept in a file, and tables made from them.

Each row is written as soon as it is known, so a run that is stopped goes on where it was, and two can share the work.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Protocol, TypeVar

from ..toyworld.report import bootstrap_interval

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
Shown = Mapping[str, tuple[str, int]]  # measure -> (heading, digits): the columns of a table
Clips = Mapping[int, dict]  # clip -> its row, of one setting


class Setting(Protocol):
    """One row of a table."""

    @property
    def section(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def clips(self) -> int: ...


S = TypeVar("S", bound=Setting)


class Rows:
    """What a benchmark has measured so far."""

    def __init__(self, name: str):
        self.file = RESULTS / f"{name}.jsonl"
        self.table = self.file.with_suffix(".md")

    def read(self) -> list[dict]:
        return [json.loads(line) for line in self.file.read_text().splitlines()] if self.file.exists() else []

    def of(self, section: str, name: str) -> Clips:
        return {r["clip"]: r for r in self.read() if (r["section"], r["setting"]) == (section, name)}

    def groups(self) -> dict[tuple[str, str], Clips]:
        """(section, setting) -> its clips."""
        groups: dict[tuple[str, str], dict[int, dict]] = defaultdict(dict)
        for row in self.read():
            groups[row["section"], row["setting"]][row["clip"]] = row
        return groups

    def fill(self, settings: Sequence[S], make: Callable[[S, int], Mapping[str, float]], work: argparse.Namespace):
        """Makes the rows that are missing, clip by clip or setting by setting.

        Args:
            make: (setting, clip) -> what was measured.
            work: as `arguments` gives it.
        """
        done = {(r["section"], r["setting"], r["clip"]) for r in self.read()}
        wanted = [s for s in settings if re.search(work.only, f"{s.section}: {s.name}")]
        part, parts = (int(n) for n in work.part.split("/"))
        pairs = [(s, i) for s in wanted for i in range(part - 1, min(work.clips or s.clips, s.clips), parts)]
        if work.order == "clip":  # a run that is stopped has every difference between settings on the same clips
            pairs.sort(key=lambda pair: pair[1])
        for setting, clip in pairs:
            if (setting.section, setting.name, clip) not in done:
                row = {"section": setting.section, "setting": setting.name, "clip": clip}
                row |= {name: round(value, 6) for name, value in make(setting, clip).items()}
                with self.file.open("a") as stream:
                    stream.write(json.dumps(row) + "\n")


# ---- tables ---------------------------------------------------------------------------------------------------------


def head(shown: Shown, *more: str) -> list[str]:
    columns = ["n", *(heading for heading, _ in shown.values()), *more]
    return ["| | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]


def line(name: str, rows: Iterable[Mapping[str, float]], shown: Shown, *more: str, sign: str = "") -> str:
    """One setting's means; a cell is empty where no row has the measure."""
    rows = list(rows)
    columns = [[r[measure] for r in rows if r.get(measure) is not None] for measure in shown]
    cells = [cell(values, digits, sign) for values, (_, digits) in zip(columns, shown.values())]
    return f"| {name} | {len(rows)} | " + " | ".join([*cells, *more]) + " |"


def difference(name: str, mine: Clips, base: Clips, shown: Shown) -> list[str]:
    """The line of one setting less another on the clips that both have; none where there are no such clips."""
    both = sorted(set(mine) & set(base))
    pairs = [(mine[clip], base[clip]) for clip in both]
    rows = [{m: a[m] - b[m] for m in shown if a.get(m) is not None and b.get(m) is not None} for a, b in pairs]
    return [line(name, rows, shown, sign="+")] if rows else []


def cell(values: Sequence[float], digits: int, sign: str = "") -> str:
    """A mean [95 % bootstrap interval of the mean], or the only value there is."""
    values = [float(v) for v in values]
    if not values or any(v != v for v in values):
        return ""
    if len(values) == 1:
        return f"{values[0]:{sign}.{digits}f}"
    low, high = bootstrap_interval(values)
    return f"{sum(values) / len(values):{sign}.{digits}f} [{low:{sign}.{digits}f}, {high:{sign}.{digits}f}]"


def origin() -> dict[str, str]:
    """When, and at which commit, a table was made."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.strip()
    return {"date": str(date.today()), "commit": commit or "unknown"}


# ---- command line ---------------------------------------------------------------------------------------------------


def arguments(doc: str, *pictures: str, order: str = "clip") -> argparse.Namespace:
    """What was asked for: `what` is "run", "table", or one of the pictures."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "table", *pictures))
    parser.add_argument("--part", default="1/1", help="i/n: every n-th clip, from the i-th; for one process a core")
    parser.add_argument("--clips", type=int, default=0, help="only the first of them")
    parser.add_argument("--only", default="", help="settings whose 'section: name' has this regular expression in it")
    parser.add_argument("--order", default=order, choices=("clip", "setting"), help="what is finished first")
    return parser.parse_args()
