"""Sends prompts to a server, one after the other, and says what became of each."""

from __future__ import annotations

import json
import pickle
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import save, save_file

from weft.headless.client import Server, WorkflowError
from weft.tests.comfy.graphs import CLIP, plain
from weft.tests.fuzz.prompts import HOSTILE
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

    def add(self, seed: int, outcome: Outcome, by: str, told: str) -> None:
        self.outcomes[outcome] += 1
        if outcome == "ugly":
            self.ugly.append(f"prompt {seed}, {by}: {told[:300]}")


def prepare(base: Path) -> None:
    """Random models and a small clip, for a server's folder."""
    for name, kind in KINDS.items():
        make_folder(base / "models" / "diffusers" / name, kind=kind)
    put_files(base / "models")
    (base / "input").mkdir()
    noise = torch.rand(FRAMES, HEIGHT // 4, WIDTH // 4, 3, generator=torch.Generator().manual_seed(0))
    clip.write_video(base / "input" / CLIP, noise.repeat_interleave(4, 1).repeat_interleave(4, 2))


def put_files(models: Path) -> None:
    """What is refused in every menu, a prompt that is not, and a motion module of one tensor."""
    tensors = {"weight": torch.zeros(4, 4)}
    header = json.dumps({"weight": {"dtype": "F32", "shape": [2**40, 2**20], "data_offsets": [0, 2**62]}}).encode()
    deep = b'{"a":' * 100_000
    contents = dict(
        zip(
            HOSTILE,
            (
                save(tensors)[:-8],
                len(deep).to_bytes(8, "little") + deep,
                b"",
                len(header).to_bytes(8, "little") + header,
                pickle.dumps(tensors),
            ),
            strict=True,
        )
    )
    for folder in ("sams", "checkpoints", "loras", "animatediff_models", "weft_prompts", "weft_trajectories"):
        (models / folder).mkdir(parents=True)
        for name, content in contents.items():
            (models / folder / name).write_bytes(content)
    save_file({"embeddings": torch.randn(1, 4, 64)}, models / "weft_prompts" / "good.safetensors")
    save_file(tensors, models / "animatediff_models" / "motion.safetensors")
    for name in ("deep", "cut"):
        make_folder(models / "diffusers" / name, kind="image")
    (models / "diffusers" / "deep" / "unet" / "config.json").write_text("[" * 200_000)
    for file in (models / "diffusers" / "cut" / "vae").glob("*.safetensors"):
        file.write_bytes(file.read_bytes()[:-1000])


def try_one(server: Server, graph: dict) -> tuple[Outcome, str, str]:
    """(what became of a graph, by which kind of node, in whose words)."""
    errors: list[dict] = []
    try:
        server.run(graph, lambda kind, data: errors.append(data) if kind == "execution_error" else None, PATIENCE)
    except WorkflowError as refusal:
        if not errors:
            return "refused by ComfyUI", "", str(refusal)
        (error,) = errors
        kind = graph[error["node_id"]]["class_type"]
        return _of_a_node(kind, error), kind, f"{error['exception_type']}: {error['exception_message'].strip()}"
    return "edited", "", ""


def _of_a_node(kind: str, error: dict) -> Outcome:
    """A refusal is a ValueError of one line that fits a screen. What it says is read by nobody here."""
    told = error["exception_message"].strip()
    if not kind.startswith("Weft"):
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
