"""Masks alone, from a click or from a text."""

from __future__ import annotations

from ...toyworld import clip
from .parts import SAM, Graph, clicked, node, read_me, source, track, wire

DETECTOR = "toyworld/detector"

NOTE = """\
**A mask by {way}**, through the whole clip, for any node that takes a MASK.
1. Press Run: the [sample clip](/api/view?filename=toy_clip.mp4&type=input) is there already.
2. {how}
3. **Track** follows the thing from there. **Confidence** says how sure it is of each frame, and where it lost it.
4. Your own clip: put {models}. Those of the toy world know the toy world only.
5. Instead of saving it, connect **Track** to Latent Blend, or to any node of ComfyUI.
"""
CLICK_NOTE = {
    "way": "click",
    "how": "Click the thing in the picture of **Click**; shift-click what is not it, drag a box. Enter shows the mask.",
    "models": "a SAM into `models/sams` or a SAM 2 into `models/sam2` and choose it in **SAM**",
}
TEXT_NOTE = {
    "way": "text",
    "how": "**Find** says what to look for, and shows its box; **Mask** makes the mask.",
    "models": "a Grounding DINO into `models/grounding-dino` or an OWLv2 into `models/owlv2`, a SAM into `models/sams` "
    "or a SAM 2 into `models/sam2`, and choose them in **Find** and **SAM**",
}


def mask(by_text: bool) -> Graph:
    """A mask through the clip, from a click or from a text, as a video."""
    frames, first = wire("Source frames", "images"), clicked()
    if by_text:
        what = " ".join(clip.captions()[0].split()[:3])  # "a yellow square"
        first = {
            "SAM": node("WeftLoadSAM", model=SAM),
            "Find": node("WeftTextToBoxes", model=DETECTOR, images=frames, text=what, frames="0"),
            "Mask": node("WeftSAMMask", sam=wire("SAM"), images=frames, positive="", boxes=wire("Find", "boxes")),
        }
    return {
        "Read me": read_me(NOTE.format(**(TEXT_NOTE if by_text else CLICK_NOTE))),
        "Source": source(),
        "First frame": first,
        "All frames": {
            "Track": track("Mask" if by_text else "Click"),
            "Confidence": node("PreviewAny", source=wire("Track", "confidence")),
        },
        "Mask video": {
            "Mask frames": node("MaskToImage", mask=wire("Track", "mask")),
            "Masks": node("CreateVideo", images=wire("Mask frames"), fps=wire("Source frames", "fps")),
            "Save": node("SaveVideo", video=wire("Masks"), filename_prefix="video/weft_mask"),
        },
    }
