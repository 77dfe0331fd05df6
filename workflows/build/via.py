"""VIA: an instruction edits one thing, the whole picture, or a long clip in parts."""

from __future__ import annotations

from ...toyworld import clip
from .parts import Column, Graph, Wire, clicked, decode, figures, node, read_me, saved, source, track, wire

EDITOR, EDITOR_CFG = "toyworld/instruct", 2.0
BACKGROUND = "make the background teal striped"

NOTE = """\
**VIA, {title}**: an instruction edits every frame, by an image model that is given the frame and the text.
1. Press Run: the [sample clip](/api/view?filename=toy_clip.mp4&type=input) is there already.
2. Say what to do in **Instruction**{also}.
3. {first}
4. {then}
5. Your own clip and model: put an InstructPix2Pix or a MagicBrush into `models/diffusers`, choose it in **Model**, \
and start with the paper's numbers: cfg 7.5, image_cfg 1.5, 10 steps. Low on memory? Lower chunk_frames of **Sample**.
"""
NOTES = {
    "local": {
        "title": "one thing of the picture",
        "also": "",
        "first": "Click the thing in the picture of **Click**; Enter shows its mask. Around it the source stays.",
        "then": "**Blend** dilate lets the new shape be larger; feather softens its edge; `paper_ramp` is VIA's own.",
    },
    "global": {
        "title": "the whole picture",
        "also": "",
        "first": "**Candidates** edits one frame with several seeds: click the best. All frames start from that seed.",
        "then": "**Adapt** learns from that pair what you mean, and **Sample** edits all frames so.",
    },
    "long": {
        "title": "a long clip, some frames at a time",
        "also": "",
        "first": "**Sample** evaluates chunk_frames frames at a time: fewer need less memory, the edit is the same.",
        "then": "For several machines take the workflow *via_long_distributed*.",
    },
    "distributed": {
        "title": "a long clip on several machines",
        "also": "",
        "first": "Install ComfyUI-Distributed, this pack and the model on all, and name the workers to the master.",
        "then": "Set **Chunks** count to their number, the master among them; **Which part** stays 0, fixed. Each "
        "edits its part; **Merge** proves that all came, and names one that did not.",
    },
}


def via(kind: str) -> Graph:
    """An instruction for every frame: one thing ("local"), the whole picture ("global"), a long clip ("long"), or one
    on several machines ("distributed")."""
    frames, text = wire("Source frames", "images"), clip.instruction()
    model, edited, plan, evaluated, part, chunk = wire("Model"), wire("Decode"), wire("Gather-swap"), {}, frames, {}
    first, blend, merge, seed = {}, {}, {}, {}
    told = {"Instruction": node("WeftEncodePrompt", model=model, text=text)}
    if kind == "local":
        first = {"Mask": clicked() | {"Track": track("Click")}}
        blend = {"Blend": node("WeftLatentBlend", plan=plan, mask=wire("Track", "mask"), dilate=2)}
        plan, evaluated = wire("Blend"), {"mask": wire("Track", "mask")}
    if kind == "global":
        first, told = {"Adapt to one frame": _adaptation(frames)}, {}
        model, seed = wire("Adapt", "model"), {"seed": wire("Candidates", "seed")}
    if kind in ("long", "distributed"):
        several = kind == "distributed"
        part, chunk, edited = wire("Part", "images"), {"chunk": wire("Part", "chunk")}, wire("Merge")
        index = wire("Which part") if several else 0
        which = {"Which part": node("DistributedSeed", seed=0, control_after_generate="fixed")} if several else {}
        first["Part of the clip"] = which | {
            "Chunks": node("WeftChunkPlan", images=frames, count=1 + several),
            "Part": node("WeftChunkSelect", chunks=wire("Chunks"), images=frames, index=index),
        }
        if several:
            merge["Stamp"] = node("WeftChunkStamp", images=wire("Decode"), **chunk)
            merge["Collect"] = node("DistributedCollector", images=wire("Stamp"), load_balance=False)
        done = wire("Collect", "images") if several else wire("Decode")
        merge["Merge"] = node("WeftChunkMerge", chunks=wire("Chunks"), images=done)
    start = {
        **told,
        "Encode": node("WeftEncodeFrames", model=model, images=part),
        "Noise": node("WeftAddNoise", model=model, latent=wire("Encode"), **chunk, **seed),
    }
    sample = {"model": model, "trajectory": wire("Noise"), "positive": wire("Instruction"), "plan": plan}
    sample |= {"cfg": EDITOR_CFG, "chunk_frames": 4 if kind in ("long", "distributed") else 0}
    return {
        "Read me": read_me(NOTE.format(**NOTES[kind])),
        "Source": source(EDITOR),
        **first,
        "Instruction and noise": start,
        "Method": {"Gather-swap": node("WeftGatherSwapAttention", **chunk), **blend},
        "Edit": {"Sample": node("WeftEditSampler", **sample), "Decode": decode(model), **merge, **saved(edited)},
        "Figures": figures(edited, **evaluated),
    }


def _adaptation(frames: Wire) -> Column:
    """Candidates of one frame, and an adapter that learns from the best."""
    told = {"model": wire("Model"), "instruction": wire("Instruction")}
    pair = {"source": wire("Candidates", "source"), "edited": wire("Candidates", "edited")}
    return {
        "Instruction": node("WeftEncodePrompt", model=wire("Model"), text=BACKGROUND),
        "Candidates": node("WeftEditCandidates", **told, images=frames, cfg=EDITOR_CFG),
        "Adapt": node("WeftTestTimeAdaptation", **told, **pair),
    }
