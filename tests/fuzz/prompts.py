"""Prompts that a careless or a hostile program may send: whole edits by random methods, with some inputs spoiled."""

from __future__ import annotations

import random

from weft.tests.comfy.graphs import CLIP, filled, node
from weft.tests.schemas import schemas

MODELS = ["tiny", "instruct", "image"]  # in the server's models/diffusers
METHODS = [
    "WeftSTRLatentOptimizer",
    "WeftSpatioTemporalAttention",
    "WeftFeatureInjection",
    "WeftTokenFlow",
    "WeftFateZero",
    "WeftGatherSwapAttention",
    "WeftSTEMAttention",
    "WeftLatentBlend",
    "WeftRegion",
]
WIRES = {  # socket -> what the graphs below give it
    "WEFT_MODEL": ["model", 0],
    "CONDITIONING": ["target", 0],
    "IMAGE": ["frames", 0],
    "LATENT": ["encode", 0],
    "MASK": ["mask", 0],
}
MAKERS = {  # socket -> who gives it, and at which output, where the edit itself does not
    "WEFT_SAM": ("WeftLoadSAM", 0),
    "WEFT_CLIP": ("WeftLoadCLIP", 0),
    "WEFT_CORRESPONDENCE": ("WeftCorrespondence", 0),
    "WEFT_CHUNKS": ("WeftChunkPlan", 0),
    "WEFT_CHUNK": ("WeftChunkSelect", 2),
    "WEFT_FIT": ("WeftPrepareClip", 2),
}
OF = {  # (node, socket) -> the only one whose output it takes
    ("WeftTestTimeAdaptation", "source"): ("WeftEditCandidates", 2),
    ("WeftTestTimeAdaptation", "edited"): ("WeftEditCandidates", 1),
    ("WeftRestoreClip", "images"): ("WeftPrepareClip", 0),
    ("WeftChunkStamp", "images"): ("WeftChunkSelect", 0),
}
HOSTILE = ["cut.safetensors", "deep.safetensors", "empty.safetensors", "lies.safetensors", "pickle.safetensors"]
FILES = {  # menus of what is on disk, see `trial.prepare`
    ("WeftLoadSAM", "model"): ["toyworld/sam", "toyworld/sam", *HOSTILE],
    ("WeftLoadCLIP", "model"): ["toyworld/clip"],
    ("WeftTextToBoxes", "model"): ["toyworld/detector"],
    ("WeftLoadAnimateDiff", "model"): [*MODELS, *(f"checkpoints/{name}" for name in HOSTILE)],
    ("WeftLoadAnimateDiff", "motion_module"): ["motion.safetensors", *HOSTILE],
    ("WeftLoadModel", "model"): [*MODELS, "deep", "cut", *(f"checkpoints/{name}" for name in HOSTILE)],
    ("WeftLoadPrompt", "file"): ["good.safetensors", *HOSTILE],
    ("WeftLoadTrajectory", "trajectory"): HOSTILE,
    ("WeftLoadAdapter", "adapter"): HOSTILE,
}
FEW = {
    "steps": 2,
    "count": 2,
    "rank": 2,
    "group_size": 2,
    "text": "a red square",
    "positive": "9,7",
    "words": "red",
}  # it is quick
NOT_OURS = ("MODEL", "VAE", "SIGMAS")  # sockets of ComfyUI's own loaders
TEXTS = [
    *("", " ", "a", "🙂", "café", "日本", "x" * 5000, "\x00\x1b[2J", "\n\n", "%s{}{0}", "(red:1.3)"),
    *("../../etc/passwd", "\ud800", "a\udfffb", "0, 1", "1;2;3", "-1", "all", "1e400", "nan", "inf", "null"),
    *("square=x", "red=", "=", "a,b=1"),
]
NUMBERS = [0, -1, 1, 2, 3, 0.5, -0.5, 1e-30, 1e30, -1e30, 2**31, 2**53 + 1, 2**64 - 1, 2**64, -(2**63)]
OBJECTS = [None, True, {}, [], {"a": 1}, {"samples": [1]}, [1, 2, 3], ["absent", 0], ["model", 99], [[]]]
WRAPPED = [["a"], ["a", "b", "c"], {"b": [1]}, None, 5, "tiny"]  # ComfyUI unpacks {"__value__": ...}


def prompt(seed: int) -> dict:
    """A graph, the same for the same seed."""
    draw = random.Random(seed)
    graph = edit(draw)
    if draw.random() < 0.5:
        one_more(graph, draw)
    for _ in range(draw.choice((0, 1, 1, 1, 2, 3))):
        spoil(graph, draw)
    return graph


def edit(draw: random.Random) -> dict:
    """A whole edit of the small clip, by none, one or more methods."""
    wires = {"model": ["model", 0], "latent": ["encode", 0], "source_prompt": ["source", 0], "steps": 2}
    inversion = draw.choice(["WeftDDIMInversion", "WeftSTEMInversion", "WeftAddNoise"])
    slots = {slot.name for slot in schemas()[inversion].inputs}
    graph = {
        "video": node("LoadVideo", file=CLIP),
        "frames": node("GetVideoComponents", video=["video", 0]),
        "model": node("WeftLoadModel", model=draw.choice(MODELS), dtype="float32"),
        "source": node("WeftEncodePrompt", model=["model", 0], text="a red square"),
        "target": node("WeftEncodePrompt", model=["model", 0], text="a blue circle"),
        "encode": node("WeftEncodeFrames", model=["model", 0], images=["frames", 0]),
        "mask": node("SolidMask", value=1.0, width=24, height=16),
        "invert": filled(inversion, **{name: wire for name, wire in wires.items() if name in slots}),
        "decode": node("WeftDecodeFrames", model=["model", 0], latent=["sample", 0]),
        "pictures": node("PreviewImage", images=["decode", 0]),
    }
    plan = {}
    for i, method in enumerate(draw.sample(METHODS, draw.choice((0, 1, 1, 2)))):
        needed = [s for s in schemas()[method].inputs if not s.is_widget and (not s.optional or s.name == "mask")]
        graph[f"method {i}"] = filled(method, **plan, **{s.name: WIRES[s.type] for s in needed})
        plan = {"plan": [f"method {i}", 0]}
    sampled = {"model": ["model", 0], "trajectory": ["invert", 0], "positive": ["target", 0], **plan}
    graph["sample"] = filled("WeftEditSampler", **sampled)
    if draw.random() < 0.3:
        told = {"source": ["frames", 0], "edit": ["decode", 0]}
        graph["figures"] = filled("WeftEvaluateEdit", **told, **({"mask": ["mask", 0]} if draw.random() < 0.5 else {}))
    return graph


def one_more(graph: dict, draw: random.Random) -> None:
    """Adds a node of any kind, wired by what its sockets take, and shows what it gives."""
    kinds = [k for k, schema in schemas().items() if not any(s.type in NOT_OURS for s in schema.inputs)]
    kind = draw.choice(kinds)
    add(graph, kind, draw)
    graph["more shown"] = node("PreviewAny", source=[kind, 0])


def add(graph: dict, kind: str, draw: random.Random) -> None:
    """Adds a node, by the name of its kind, and whatever its sockets need."""
    if kind in graph:
        return
    slots = schemas()[kind].inputs
    given = {name: FEW[name] for name in (slot.name for slot in slots) if name in FEW}
    given |= {name: draw.choice(files) for (of, name), files in FILES.items() if of == kind}
    graph[kind] = {}  # its place: nothing is added twice
    for slot in slots:
        if slot.is_widget or (slot.optional and draw.random() < 0.5):
            continue
        if maker := OF.get((kind, slot.name)) or MAKERS.get(slot.type):
            maker, output = maker
            add(graph, maker, draw)
            given[slot.name] = [maker, output]
        elif slot.type in WIRES or slot.type == "WEFT_TRAJECTORY":
            given[slot.name] = WIRES.get(slot.type, ["invert", 0])
    graph[kind] = filled(kind, **given)


def spoil(graph: dict, draw: random.Random) -> None:
    """Changes one input of one of our nodes."""
    at = draw.choice([name for name, n in graph.items() if n["class_type"].startswith("Weft")])
    inputs = graph[at]["inputs"]
    slot = draw.choice(schemas()[graph[at]["class_type"]].inputs)
    kind = draw.choice(["text", "number", "object", "wrapped", "wire", "choice", "gone"])
    if kind == "gone":
        inputs.pop(slot.name, None)
    elif kind == "wire":
        inputs[slot.name] = [draw.choice(list(graph)), draw.choice((0, 0, 1, 2))]
    elif kind == "choice" and slot.details.get("options"):
        inputs[slot.name] = draw.choice(slot.details["options"])
    elif kind == "wrapped":
        inputs[slot.name] = {"__value__": draw.choice(WRAPPED)}
    else:
        inputs[slot.name] = draw.choice({"number": NUMBERS, "object": OBJECTS}.get(kind, TEXTS))
