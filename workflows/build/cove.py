"""COVE: correspondences of the source guide inversion and edit."""

from __future__ import annotations

from ...toyworld import clip, world
from .parts import CFG, IMAGE_MODEL, Graph, decode, figures, node, prompts, read_me, saved, source, wire

NOTE = """\
**COVE**: what belongs together in the frames of a clip is found first, and then attends to itself, in the inversion \
and in the edit.
1. Press Run: the [sample clip](/api/view?filename=toy_clip.mp4&type=input) is there already.
2. **Matches** shows where points of the first frame are in the others. If they jump about, raise ensemble of **Find**.
3. Change the words of what is to change in **Target prompt**, and nothing else.
4. **Inject** feature_steps and attention_steps: more keep the layout, less edit more. **Sample** cfg: how hard to \
follow the prompt. **Along matches** strength: 0 leaves spatio-temporal attention alone.
5. Your own clip and model: put a Stable Diffusion 1.x or 2.x folder into `models/diffusers`, choose it in **Model**, \
describe your clip in **Source prompt**, and take the paper's cfg of 7.5 and levels finest in **Along matches**; all \
other numbers are the paper's already.
"""


def cove() -> Graph:
    """Correspondences of the source that guide inversion and edit; one plan for both, as injection needs an edit."""
    model, frames, plan = wire("Model"), wire("Source frames", "images"), wire("Over the clip")
    found = wire("Find")
    x, y = (clip.source_clip().center[0, 0] / world.SIZE).tolist()
    point = f"{x:.2f} {y:.2f}"  # the middle of the sprite, as shares of width and height
    start = {"latent": wire("Encode"), "source_prompt": wire("Source prompt"), "plan": plan}
    sample = {"trajectory": wire("Invert"), "positive": wire("Target prompt"), "negative": wire("Negative prompt")}
    sample |= {"source_latent": start["latent"], "source_prompt": start["source_prompt"]}
    return {
        "Read me": read_me(NOTE),
        "Source": source(IMAGE_MODEL),
        "Prompts": prompts(),
        "Correspondence": {
            "Find": node("WeftCorrespondence", model=model, latent=wire("Encode")),
            "Matches": node("WeftPreviewCorrespondence", correspondence=found, images=frames, points=point),
        },
        "Method": {
            "Inject": node("WeftFeatureInjection", feature_steps=40, attention_steps=40),
            "Along matches": node(
                "WeftCorrespondenceAttention", plan=wire("Inject"), correspondence=found, levels="all"
            ),
            "Over the clip": node("WeftSpatioTemporalAttention", plan=wire("Along matches")),
        },
        "Edit": {
            "Invert": node("WeftDDIMInversion", model=model, **start, steps=100, edit_steps=50),
            "Sample": node("WeftEditSampler", model=model, **sample, plan=plan, cfg=CFG),
            "Decode": decode(model),
            **saved(wire("Decode")),
        },
        "Figures": figures(wire("Decode")),
    }
