"""What the graphs are made of: nodes, wires, and the columns that several methods have.

A graph is columns of nodes, as `page.cjs` builds them: {heading: {title: {type, inputs}}}, an input a wire or a value.
The titles matter: they are what `--set "Title.input=value"` of the headless client and the readers of a graph go by.
"""

from __future__ import annotations

from typing import Any

from ...toyworld import clip

Wire = dict[str, str]
Node = dict[str, Any]
Column = dict[str, Node]
Graph = dict[str, Column]

IMAGE_MODEL, SAM = "toyworld/image", "toyworld/sam"
CFG = 4.0  # of the models that are told what a clip shows


def node(type: str, /, **inputs: Any) -> Node:
    return {"type": type, "inputs": inputs}


def wire(title: str, output: str = "") -> Wire:
    """A link from an output, by name, of the node with this title; without a name, from its only one."""
    return {"title": title, "output": output}


def read_me(text: str) -> Column:
    return {"About this workflow": node("MarkdownNote", text=text)}


def source(model: str | None = None) -> Column:
    """The shipped clip and, if one is named, the model."""
    column = {
        "Source video": node("LoadVideo", file=clip.CLIP.name),
        "Source frames": node("GetVideoComponents", video=wire("Source video")),
    }
    return column if model is None else column | {"Model": node("WeftLoadModel", model=model, dtype="auto")}


def prompts() -> Column:
    """What the clip shows, what it shall show, and its latents."""
    source_text, target_text = clip.captions()
    model = wire("Model")
    return {
        "Source prompt": node("WeftEncodePrompt", model=model, text=source_text),
        "Target prompt": node("WeftEncodePrompt", model=model, text=target_text),
        "Negative prompt": node("WeftEncodePrompt", model=model, text=""),
        "Encode": node("WeftEncodeFrames", model=model, images=wire("Source frames", "images")),
    }


def clicked() -> Column:
    """A mask of the first frame: the middle of the sprite is clicked."""
    x, y = clip.source_clip().center[0, 0].round().int().tolist()
    frames = wire("Source frames", "images")
    return {
        "SAM": node("WeftLoadSAM", model=SAM),
        "Click": node("WeftSAMMask", sam=wire("SAM"), images=frames, positive=f"{x},{y}"),
    }


def track(first: str) -> Node:
    """The mask that the node `first` makes, through the clip."""
    return node(
        "WeftTrackMask",
        sam=wire("SAM"),
        images=wire("Source frames", "images"),
        mask=wire(first, "mask"),
        frames=wire(first, "frames"),
    )


def decode(model: Wire) -> Node:
    """The frames of the node Sample."""
    return node("WeftDecodeFrames", model=model, latent=wire("Sample", "latent"))


def saved(frames: Wire) -> Column:
    """A video with the source's speed and sound; a source without sound is as good."""
    told = {"fps": wire("Source frames", "fps"), "audio": wire("Source frames", "audio")}
    return {
        "Edited video": node("CreateVideo", images=frames, **told),
        "Save": node("SaveVideo", video=wire("Edited video"), filename_prefix="video/weft"),
    }


def figures(edit: Wire, **mask: Wire) -> Column:
    """The edit measured against the source."""
    return {
        "Compare": node(
            "WeftCompareVideos", a=wire("Source frames", "images"), b=edit, fps=wire("Source frames", "fps")
        ),
        "Evaluate": node("WeftEvaluateEdit", source=wire("Source frames", "images"), edit=edit, **mask),
    }
