"""The papers' own models: the graphs of the toy models with other loaders, the papers' numbers, and the clip cut and
scaled to what the model was made for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .cove import cove
from .parts import Graph, Node, node, read_me, wire
from .stem import stem
from .str_match import str_match
from .via import via

IMAGE, EDITOR = "stable-diffusion-v1-5", "instruct-pix2pix"
PAPER = {"strength": 0.01}  # of STR-Match

NOTE = """\
**{title}** with {of} and the paper's numbers.
1. Put {files}. Nothing is downloaded by this pack; Load Model says what is missing.
2. Load your clip in **Source video**.{clip} Describe it in {texts}.
3. {turn}
4. It wants a GPU{memory}. The figures below the edit compare it with the source.
"""
PROMPTS = "**Source prompt**, and in **Target prompt** the same with other words for what is to change"
STRENGTH = (
    "**STR-Match** strength: 0.005 follows the source less, 0.015 more; its log says how far each step moves. Guidance "
    "moves away from the source's prompt, as in the paper."
)
LAYOUT = "**Inject** or **TokenFlow** feature_steps and attention_steps: more keep the layout, less edit more."


def paper(name: str) -> Graph:
    """The graph of one of `NAMES`."""
    return NAMES[name]()


def str_match_lavie() -> Graph:
    note = _note(
        "STR-Match",
        "LaVie",
        "`lavie_base.pt` and the folder `stable-diffusion-v1-4` into `models/diffusers/lavie`",
        " LaVie was made for 16 frames of 512x320, and **Clip** and **Size** see to it.",
        STRENGTH,
        " of 16 GB or more",
    )
    return _with(_guided(), note, _model("lavie"), frames=16, size=(512, 320))


def str_match_zeroscope() -> Graph:
    note = _note(
        "STR-Match",
        "Zeroscope",
        "the folder `zeroscope_v2_576w` into `models/diffusers`",
        " Zeroscope was made for 24 frames of 576x320, and **Clip** and **Size** see to it.",
        STRENGTH,
        " of 24 GB, or less and more time",
    )
    return _with(_guided(), note, _model("zeroscope_v2_576w"), frames=24, size=(576, 320))


def str_match_animatediff() -> Graph:
    note = _note(
        "STR-Match",
        "AnimateDiff",
        "`v1-5-pruned-emaonly.safetensors` into `models/checkpoints` and `v3_sd15_mm.ckpt` into "
        "`models/animatediff_models`",
        " AnimateDiff was made for 16 frames of 512x512, and **Clip** and **Size** see to it.",
        STRENGTH + " The paper has no AnimateDiff: take its numbers as a start.",
        " of 16 GB or more",
    )
    loader = node(
        "WeftLoadAnimateDiff",
        model="checkpoints/v1-5-pruned-emaonly.safetensors",
        motion_module="v3_sd15_mm.ckpt",
        dtype="auto",
    )
    return _with(_guided(), note, loader, frames=16, size=(512, 512))


def str_match_cogvideox() -> Graph:
    note = _note(
        "STR-Match",
        "CogVideoX 5b",
        "the folder `CogVideoX-5b` into `models/diffusers`",
        " CogVideoX was made for 49 frames of 720x480; **Clip** must give it 9, 17, 25, ... of them, and **Size** "
        "sides divisible by 16.",
        STRENGTH + " The paper does not say how its score is taken of a model that attends over the whole clip at "
        "once: joint of **STR-Match** has two ways.",
        " of 48 GB or more",
    )
    return _with(_guided(), note, _model("CogVideoX-5b"), {"Sample": {"cfg": 6.0}}, frames=49, size=(720, 480))


def cove_sd() -> Graph:
    note = _note(
        "COVE",
        "Stable Diffusion 1.5",
        f"the folder `{IMAGE}` into `models/diffusers`",
        " **Size** makes it 512x512.",
        LAYOUT + " **Along matches** strength: 0 leaves spatio-temporal attention alone.",
        " of 24 GB for 16 frames",
    )
    numbers = {"Along matches": {"levels": "finest"}, "Sample": {"cfg": 7.5}}
    return _with(cove(), note, _model(IMAGE), numbers, drop=("Matches",), size=(512, 512))


def stem_tokenflow_sd() -> Graph:
    note = _note(
        "STEM inversion, TokenFlow",
        "Stable Diffusion 1.5",
        f"the folder `{IMAGE}` into `models/diffusers`",
        " **Size** makes it 512x512.",
        LAYOUT,
        " of 12 GB or more",
    )
    numbers = {
        "Invert": {"bases": 256, "steps": 50},
        "TokenFlow": {"batch": 8, "feature_steps": 40, "attention_steps": 25},
        "Sample": {"cfg": 7.5},
    }
    dropped = ("Replay", "Replayed frames", "Compare", "Replay PSNR")
    return _with(stem("token_flow"), note, _model(IMAGE), numbers, drop=dropped, size=(512, 512))


def via_instructpix2pix() -> Graph:
    note = NOTE.format(
        title="VIA",
        of="InstructPix2Pix",
        files=f"the folder `{EDITOR}` into `models/diffusers`",
        clip=" **Size** makes it 512x512.",
        texts="no words, and say in **Instruction** what to do",
        turn="**Candidates** edits one frame with several seeds: click the best, and **Adapt** learns from it. MGIE's "
        "embeddings come by **Load Prompt**, in the place of **Instruction**.",
        memory=" of 12 GB or more",
    )
    numbers = {"Candidates": {"cfg": 7.5}, "Sample": {"cfg": 7.5, "image_cfg": 1.5}, "Noise": {"steps": 10}}
    return _with(via("global"), note, _model(EDITOR), numbers, size=(512, 512))


NAMES = {
    graph.__name__: graph
    for graph in (
        str_match_lavie, str_match_zeroscope, str_match_animatediff, str_match_cogvideox, cove_sd, stem_tokenflow_sd,
        via_instructpix2pix,
    )
}  # fmt: skip


def _note(title: str, of: str, files: str, clip: str, turn: str, memory: str) -> str:
    return NOTE.format(title=title, of=of, files=files, clip=clip, texts=PROMPTS, turn=turn, memory=memory)


def _model(name: str) -> Node:
    return node("WeftLoadModel", model=name, dtype="auto")


def _guided() -> Graph:
    """STR-Match with the paper's numbers."""
    graph = str_match(masked=False)
    return _changed(graph, {"STR-Match": PAPER, "Sample": {"cfg": 7.5, "negative": None}}, ("Negative prompt",))


def _with(
    graph: Graph,
    note: str,
    model: Node,
    numbers: Mapping[str, Mapping[str, Any]] = {},
    *,
    drop: tuple[str, ...] = (),
    frames: int | None = None,
    size: tuple[int, int],
) -> Graph:
    """A graph with another model and other numbers, of the clip's first `frames` frames at a size (width, height)."""
    graph = _changed(graph, numbers, drop)
    whole, cut = wire("Source frames", "images"), {}
    if frames is not None:
        cut["Clip"] = node("ImageFromBatch", image=whole, batch_index=0, length=frames)
    width, height = size
    scaled = {"upscale_method": "lanczos", "width": width, "height": height, "crop": "center"}
    cut["Size"] = node("ImageScale", image=wire("Clip") if cut else whole, **scaled)
    for column in graph.values():
        for each in column.values():
            each["inputs"] = {k: wire("Size") if v == whole else v for k, v in each["inputs"].items()}
    return {**graph, "Read me": read_me(note), "Source": {**graph["Source"], **cut, "Model": model}}


def _changed(graph: Graph, numbers: Mapping[str, Mapping[str, Any]], drop: tuple[str, ...]) -> Graph:
    """A copy of a graph without some nodes and with other inputs; None is no input."""
    copy = {}
    for heading, column in graph.items():
        kept = {title: each for title, each in column.items() if title not in drop}
        for title, each in kept.items():
            inputs = {**each["inputs"], **numbers.get(title, {})}
            kept[title] = {**each, "inputs": {k: v for k, v in inputs.items() if v is not None}}
        if kept:
            copy[heading] = kept
    if strange := set(numbers) - {title for column in copy.values() for title in column}:
        raise ValueError(f"no node {', '.join(strange)} in the graph")
    return copy
