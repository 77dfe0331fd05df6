"""The stages of an STR-Match workflow without ComfyUI: the same numbers, read from the same API file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from torch import Tensor

from ..backbones.diffusers.loading import load_backbone
from ..engine.edit import edit
from ..engine.inversion import invert
from ..engine.monitor import Monitor
from ..engine.plan import PLAIN
from ..methods.str_match import STRLatentOptimizer
from .comfyui import ROOT
from .graph import Graph, find_node, is_link

Steps = Callable[[str, int, int], None]  # what is done, so many steps, of so many


class StepMonitor(Monitor):
    """Passes progress on, with the name of the stage."""

    def __init__(self, stage: str, steps: Steps):
        self.stage, self.steps = stage, steps

    def progress(self, done: int, total: int, preview: Tensor | None = None) -> None:
        self.steps(self.stage, done, total)


def edits(graph: Graph, frames: Tensor, strengths: Sequence[float], steps: Steps) -> Iterator[Tensor]:
    """One edited clip [F, H, W, 3] for each strength, from one inversion.

    Args:
        graph: load, encode, invert, one STR-Match optimizer, sample, decode; models of the toy world only.
        frames: the source clip [F, H, W, 3] in 0..1.
    """
    model = settings(graph, "WeftLoadModel")
    folder = ROOT / "toyworld" / "weights" / Path(model["model"]).name
    backbone = load_backbone(folder, name=model["model"], dtype=model["dtype"])
    source, target, negative = (None if text is None else backbone.text.embed(text) for text in prompts(graph))
    inversion, sampler = settings(graph, "WeftDDIMInversion"), settings(graph, "WeftEditSampler")
    edit_steps, monitor = inversion.pop("edit_steps"), StepMonitor("invert", steps)
    inversion.pop("resume", None)  # where it would be kept is for ComfyUI to say
    trajectory = invert(backbone, backbone.codec.encode(frames), source, **inversion, monitor=monitor)
    trajectory = trajectory.thinned(edit_steps) if edit_steps else trajectory
    for strength in strengths:
        plan = PLAIN.then(STRLatentOptimizer(**{**settings(graph, "WeftSTRLatentOptimizer"), "strength": strength}))
        monitor = StepMonitor(f"edit at strength {strength:g}", steps)
        numbers = {
            "negative": negative,
            "guidance": sampler["cfg"],
            "image_guidance": sampler["image_cfg"],
            "chunk_frames": sampler["chunk_frames"],
            "seed": sampler["seed"],
        }
        yield backbone.codec.decode(edit(backbone, trajectory, target, plan=plan, **numbers, monitor=monitor))


def prompts(graph: Graph) -> tuple[str, str, str | None]:
    """(source, target, negative) texts of a workflow; no negative means the source's."""
    wires = (("WeftDDIMInversion", "source_prompt"), ("WeftEditSampler", "positive"), ("WeftEditSampler", "negative"))
    links = [graph[find_node(graph, node)]["inputs"].get(name) for node, name in wires]
    return tuple(link and graph[link[0]]["inputs"]["text"] for link in links)


def settings(graph: Graph, node: str) -> dict:
    """The unwired inputs of the one node of a class."""
    inputs = graph[find_node(graph, node)]["inputs"]
    return {name: value for name, value in inputs.items() if not is_link(value)}
