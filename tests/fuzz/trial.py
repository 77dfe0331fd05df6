"""Sends prompts to a server, one after the other, and says what became of each."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch

from weft.headless.client import Server, WorkflowError
from weft.tests.comfy.graphs import CLIP, plain
from weft.tests.tiny import make_folder
from weft.toyworld import clip

Outcome = Literal["edited", "refused by ComfyUI", "refused by a node", "failed in ComfyUI's own nodes", "ugly"]
LONGEST = 700  # characters of a refusal that fits a screen
PATIENCE = 120  # seconds of silence
KINDS = {"tiny": "video", "instruct": "instruct", "image": "image"}  # models by name
FRAMES, HEIGHT, WIDTH = 4, 16, 24


@dataclass
class Tally:
    """What became of many prompts."""

    outcomes: Counter = field(default_factory=Counter)
    ugly: list[str] = field(default_factory=list)  # in words, with the seed

    def add(self, seed: int, outcome: Outcome, told: str) -> None:
        self.outcomes[outcome] += 1
        if outcome == "ugly":
            self.ugly.append(f"prompt {seed}: {told[:300]}")


def prepare(base: Path) -> None:
    """Random models and a small clip, for a server's folder."""
    for name, kind in KINDS.items():
        make_folder(base / "models" / "diffusers" / name, kind=kind)
    (base / "input").mkdir()
    noise = torch.rand(FRAMES, HEIGHT // 4, WIDTH // 4, 3, generator=torch.Generator().manual_seed(0))
    clip.write_video(base / "input" / CLIP, noise.repeat_interleave(4, 1).repeat_interleave(4, 2))


def try_one(server: Server, graph: dict) -> tuple[Outcome, str]:
    """(what became of a graph, in whose words)."""
    errors: list[dict] = []
    try:
        server.run(graph, lambda kind, data: errors.append(data) if kind == "execution_error" else None, PATIENCE)
    except WorkflowError as refusal:
        if not errors:
            return "refused by ComfyUI", str(refusal)
        (error,) = errors
        return _of_a_node(graph, error), f"{error['exception_type']}: {error['exception_message'].strip()}"
    return "edited", ""


def _of_a_node(graph: dict, error: dict) -> Outcome:
    """A refusal is a ValueError of one line that fits a screen. What it says is read by nobody here."""
    told = error["exception_message"].strip()
    if not graph[error["node_id"]]["class_type"].startswith("Weft"):
        return "failed in ComfyUI's own nodes"
    plain_words = error["exception_type"] == "ValueError" and "\n" not in told and 10 < len(told) < LONGEST
    return "refused by a node" if plain_words else "ugly"


def still_works(server: Server) -> bool:
    """Whether a plain edit runs, whatever was sent before."""
    try:
        server.run(plain(steps=2), patience=PATIENCE)
    except WorkflowError:
        return False
    return True
