"""Weft's own sockets. The strings are saved in workflows and never change."""

from __future__ import annotations

from comfy_api.v0_0_2 import io

from ..backbones.comfy import text as native
from ..backbones.diffusers.text import prompt_of
from ..engine.plan import PLAIN, Control, EditPlan
from ..engine.words import Prompt
from .modifiers import require_plain

Model = io.Custom("WEFT_MODEL")
Trajectory = io.Custom("WEFT_TRAJECTORY")
Plan = io.Custom("WEFT_PLAN")
Correspondence = io.Custom("WEFT_CORRESPONDENCE")
Chunks = io.Custom("WEFT_CHUNKS")  # how a long clip is cut
Chunk = io.Custom("WEFT_CHUNK")  # one part of it
Sam = io.Custom("WEFT_SAM")
Fit = io.Custom("WEFT_FIT")  # how a clip was made to fit a model, and the way back
Clip = io.Custom("WEFT_CLIP")  # both towers, to judge pictures by texts; ComfyUI's own CLIP is a text encoder


def found_by(*words: str) -> dict[str, list[str]]:
    """What else a node is searched for by, where ComfyUI's schemas have that."""
    return {"search_aliases": list(words)} if "search_aliases" in getattr(io.Schema, "__dataclass_fields__", ()) else {}


def plan_input() -> io.Input:
    return Plan.Input(
        "plan",
        optional=True,
        tooltip="What other methods already do. Order does not matter but among methods of one kind.",
    )


def seed_input(tooltip: str, name: str = "seed") -> io.Input:
    """A seed that stays as it is: one that changes after every run would rerun what it belongs to."""
    return io.Int.Input(name, default=0, min=0, max=2**64 - 1, control_after_generate=False, tooltip=tooltip)


def plan_or_empty(plan: EditPlan | None) -> EditPlan:
    return PLAIN if plan is None else plan


def controls_of(plan: EditPlan | None) -> tuple[Control, ...]:
    """What acts in one region alone. ValueError for a plan that has regions itself."""
    if plan is not None and plan.regions:
        raise ValueError("a region cannot hold regions: connect them one after the other by their 'plan' inputs")
    return plan_or_empty(plan).controls


def to_conditioning(prompt: Prompt) -> list:
    """As ComfyUI passes prompts about, with what a trajectory needs to know of this one."""
    told = {"weft_text": prompt.text, "weft_encoder": prompt.encoder, "weft_tokens": prompt.tokens}
    if "conditioning" in prompt.cond:
        return [[tensor, {**extra, **told}] for tensor, extra in prompt.cond["conditioning"]]
    return [[prompt.cond["embedding"], {"pooled_output": None, **told}]]


def from_conditioning(conditioning: list) -> Prompt:
    """A prompt of this pack's text encoders, or of core's conditioning, which ComfyUI's own models take whole.

    Raises:
        ValueError: what is no conditioning, or an empty one; one of this pack's encoders that core's nodes have changed
            since.
    """
    match conditioning:
        case [[embedding, {"weft_text": str(text), "weft_encoder": str(encoder)} as extra], *_] if (
            encoder and is_embedding(embedding)
        ):
            require_plain(conditioning)
            return prompt_of(embedding, text, encoder, tuple(extra.get("weft_tokens", ())))
        case [[_, {"weft_text": str(text)} as extra]]:
            return native.prompt_of(conditioning, text, tuple(extra.get("weft_tokens", ())))
        case _:
            return native.prompt_of(conditioning)


def is_embedding(value: object) -> bool:
    return getattr(value, "ndim", 0) == 3
