"""STEM inversion, with TokenFlow or FateZero."""

from __future__ import annotations

from ...toyworld import clip
from .parts import CFG, IMAGE_MODEL, Graph, decode, figures, node, prompts, read_me, saved, source, wire

BASES, STEPS = 64, 25
THRESHOLD = 0.9  # of FateZero's words: at 0.3 this model's attention to any word covers the whole picture

NOTE = """\
**STEM inversion, {title}**: the clip is inverted through bases that all its frames share, and edited by an image model.
1. Press Run: the [sample clip](/api/view?filename=toy_clip.mp4&type=input) is there already.
2. Change the words of what is to change in **Target prompt**, and nothing else{also}.
3. **Replay PSNR** says how well the inversion gives the clip back: under 25 dB, take more steps.
4. {turn}
5. Your own clip and model: put a Stable Diffusion 1.x or 2.x folder into `models/diffusers`, choose it in **Model**, \
describe your clip in **Source prompt**, and take the paper's numbers: 256 bases, 50 steps, cfg 7.5{own}.
"""
NOTES = {
    "token_flow": {
        "title": "TokenFlow",
        "also": "",
        "turn": "**TokenFlow** feature_steps and attention_steps: more keep the layout, less edit more.",
        "own": ", 40 and 25 injection steps, 8 frames a batch",
    },
    "fate_zero": {
        "title": "FateZero",
        "also": "; name the thing that is to change in **FateZero** and **Where** words",
        "turn": "**Where** shows where the source's words look, and what a threshold takes of it: move it there, and "
        "put it into **FateZero**. Less edits more of the picture. self_replace: less changes the shape more.",
        "own": ", key_frames previous_and_first, threshold 0.3: the toy model spreads its attention, and wants 0.9",
    },
}


def stem(editor: str) -> Graph:
    """An edit from a STEM inversion, by "token_flow" or "fate_zero", and the replay that shows what it kept."""
    model, frames = wire("Model"), wire("Source frames", "images")
    numbers = {"latent": wire("Encode"), "source_prompt": wire("Source prompt"), "steps": STEPS, "bases": BASES}
    checked = {"source_latent": wire("Encode"), "source_prompt": wire("Source prompt")}
    sample = {"model": model, "trajectory": wire("Invert", "trajectory"), **checked}
    if editor == "token_flow":
        steps = {"feature_steps": STEPS * 4 // 5, "attention_steps": STEPS // 2}
        method = {"TokenFlow": node("WeftTokenFlow", batch=4, **steps)}
    else:
        look = {"words": clip.captions()[0].split()[2], "threshold": THRESHOLD}  # "square"
        where = node("WeftPreviewWords", model=model, trajectory=wire("Invert", "trajectory"), **look)
        method = {"FateZero": node("WeftFateZero", **look, key_frames="own"), "Where": where}
    edited = {
        "positive": wire("Target prompt"),
        "negative": wire("Negative prompt"),
        "plan": wire(next(iter(method))),
        "cfg": CFG,
    }
    replayed = {"positive": wire("Source prompt"), "plan": wire("Invert", "replay"), "cfg": 1.0}
    return {
        "Read me": read_me(NOTE.format(**NOTES[editor])),
        "Source": source(IMAGE_MODEL),
        "Prompts and noise": prompts() | {"Invert": node("WeftSTEMInversion", model=model, **numbers)},
        "Replay": {
            "Replay": node("WeftEditSampler", **sample, **replayed),
            "Replayed frames": node("WeftDecodeFrames", model=model, latent=wire("Replay", "latent")),
            "Replay PSNR": node("WeftEvaluateEdit", source=frames, edit=wire("Replayed frames")),
        },
        "Method": method,
        "Edit": {
            "Sample": node("WeftEditSampler", **sample, **edited),
            "Decode": decode(model),
            **saved(wire("Decode")),
        },
        "Figures": figures(wire("Decode")),
    }
