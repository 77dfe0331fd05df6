"""What the rows of the long run say, as a page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

TEXT = """# Reliability

`python -m weft.tests.fuzz --prompts {prompts}`, seeds {first} to {last}, ComfyUI {version}, commit {commit},
{seconds:.0f} s of prompts on {servers} server process(es), beside other work. Each prompt is a whole edit of a small
clip by a random model, inversion and methods, half of them with one more node of any kind, with up to three inputs
spoiled: other texts, numbers, objects, lists, wires to other nodes, or none. Menus hold files that are cut off, empty,
pickles, too deep, and that lie about sizes.

| what became of it | prompts |
|---|---|
{outcomes}

- Ugly refusals (an error of a node that is no ValueError, has more than one line or does not fit a screen): {ugly}.
- Prompts after which a plain edit did not run, of {looks} looks (after every ugly one and every 50): {dead}.
- {again}
- The server's memory: {rss}.
  Some of this is ComfyUI's own history of prompts, 24 KB an entry: in two runs of the seeds 0 to 699 alone, on
  2026-11-27, it grew by 42 KB a prompt over the last 350, and by 27 where the history was emptied after every prompt
  (22 over the last 200). What the rest is was not found.

Refusals by a node of this pack, by node:

| node | prompts |
|---|---|
{refusals}
"""

STAGES = """## Cancels

`python -m weft.tests.fuzz --stages`, on tiny models: a cancel comes while a network is evaluated, and what is counted
is the evaluations that begin after it. {count} cancels at {stages} stages: {after} begun after.

| stage | evaluations of the whole | cancelled in the | stopped | begun after the cancel |
|---|---|---|---|---|
{rows}

## Memory that ends, and a server that is killed

Tests of every run show these, within the tolerances of `tests/numerics.py` or to the bit where they say so: out of
memory in encoding, decoding, inversion, sampling and STR-Match gives the same result in smaller steps
(`tests/backbones/test_diffusers_parts.py`, `tests/engine/test_step_down.py`, `tests/backbones/test_recompute.py`); a
ComfyUI that is killed (-9) in an inversion or in sampling, and started again, gives the same bits and evaluates only
the steps that are missing (`tests/comfy/test_kill.py`).
"""


def text(rows: Sequence[dict]) -> str:
    """The page of reliability.md. A prompt that was tried again counts as it went the last time, and is named."""
    tried = [row for row in rows if row["what"] == "prompt"]
    return "\n".join(filter(None, (_prompts(tried) if tried else "", *_stages(rows))))


def _prompts(tried: Sequence[dict]) -> str:
    last = {row["seed"]: row for row in tried}
    first = {row["seed"]: row for row in reversed(tried)}
    seeds, kept = sorted(last), [last[seed] for seed in sorted(last)]
    were_ugly = [row for row in first.values() if row["outcome"] == "ugly"]
    looks = [row["works"] for row in tried if "works" in row]
    again = "No prompt was ugly at first."
    if were_ugly:
        told = ", ".join(f"{row['seed']} ({row['by']})" for row in sorted(were_ugly, key=lambda row: row["seed"]))
        commits = _names(row["commit"] for row in tried if row["seed"] in {w["seed"] for w in were_ugly})
        again = (
            f"Ugly at first, and run again after a mend, not the whole run: {len(were_ugly)}, the prompts {told}. The "
            f"table counts the last time. Commits: {commits}."
        )
    refused = Counter(row["by"] for row in kept if row["outcome"] == "refused by a node")
    return TEXT.format(
        prompts=len(seeds),
        first=seeds[0],
        last=seeds[-1],
        version=_names(row["comfyui"] for row in first.values()),
        commit=_names(row["commit"] for row in first.values()),
        seconds=sum(row["seconds"] for row in first.values()),
        servers=len({row["server"] for row in first.values()}),
        outcomes=_table(Counter(row["outcome"] for row in kept)),
        ugly="; ".join(f"prompt {r['seed']}, {r['by']}: {r['told']}" for r in kept if r["outcome"] == "ugly") or "0",
        looks=len(looks),
        dead=looks.count(False),
        again=again,
        rss=_rss(list(first.values())[::-1]),
        refusals=_table(refused),
    )


def _rss(rows: Sequence[dict]) -> str:
    """How much the server that took most prompts grew, from its 100th prompt on."""
    server, _ = Counter(row["server"] for row in rows).most_common(1)[0]
    sizes = [row["mb"] for row in rows if row["server"] == server]
    at = range(0, len(sizes), max(1, len(sizes) // 8))
    shown = ", ".join(f"{sizes[i]} MB after {i + 1}" for i in at) + f", {sizes[-1]} MB after all {len(sizes)}"
    if len(sizes) < 200:
        return shown
    half = len(sizes) // 2
    grown = (sum(sizes[-100:]) - sum(sizes[half - 50 : half + 50])) / 100 / (len(sizes) - 50 - half) * 1024
    return f"{shown}; {grown:+.0f} KB a prompt over the second half"


def _stages(rows: Sequence[dict]) -> Iterable[str]:
    last = {row["stage"]: row["cancels"] for row in rows if row["what"] == "cancel"}
    if last:
        count = sum(len(cancels) for cancels in last.values())
        yield STAGES.format(
            count=count,
            stages=len(last),
            after=sum(c["after"] for cancels in last.values() for c in cancels),
            rows="\n".join(
                f"| {stage} | {cancels[0]['of']} | {', '.join(str(c['at'] + 1) for c in cancels)} | "
                f"{sum(c['stopped'] for c in cancels)} of {len(cancels)} | {sum(c['after'] for c in cancels)} |"
                for stage, cancels in last.items()
            ),
        )


def _table(counts: Counter) -> str:
    return "\n".join(f"| {name} | {count} |" for name, count in counts.most_common())


def _names(names: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(names))
