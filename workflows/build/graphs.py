"""The shipped workflows as data: what each node is, what its widgets say, and in which column it stands.

The titles matter: they are what `--set "Title.input=value"` of the headless client and the readers of a graph go by.
"""

from __future__ import annotations

from typing import Any

from ...toyworld import clip

STEPS = 50
STRENGTH = 0.5  # of STR-Match, for toyworld/video
CFG = 4.0
MODEL = "toyworld/video"

NOTE = """\
**STR-Match{title}**: rewrites what moves in a clip and keeps its layout and motion.
1. Upload `workflows/toy_clip.mp4`{mask} of this pack in the Load Video node{s}, then press Run.
2. Change the words of what is to change in **Target prompt**, and nothing else.
3. **STR-Match** strength: more follows the source, less edits more. **Sample** cfg: how hard to follow the prompt.
4. Your own clip and model: put a diffusers folder (Zeroscope, ModelScope) into `models/diffusers`, choose it in \
**Model**, describe your clip in **Source prompt**, and start with the paper's numbers: strength 0.01, cfg 7.5, and \
**Negative prompt** disconnected, so that guidance moves away from the source's prompt.{own}
"""
PLAIN_NOTE = {"title": "", "mask": "", "s": "", "own": ""}
MASKED_NOTE = {
    "title": " with a mask",
    "mask": " and `workflows/toy_mask.mp4`",
    "s": "s",
    "own": " The mask is a video as large and as long as the clip, white where it may change: old and new shape.",
}


def wire(title: str, output: str = "") -> dict[str, str]:
    """A link from an output, by name, of the node with this title; without a name, from its only one."""
    return {"title": title, "output": output}


def str_match(masked: bool) -> dict[str, dict[str, Any]]:
    """Columns of nodes, as `page.cjs` builds them: {heading: {title: {type, inputs}}}, an input a wire or a value."""
    source_text, target_text = clip.captions()
    model, frames = wire("Model"), wire("Source frames", "images")
    source = {
        "Source video": _node("LoadVideo", file=clip.CLIP.name),
        "Source frames": _node("GetVideoComponents", video=wire("Source video")),
        "Model": _node("WeftLoadModel", model=MODEL, dtype="auto"),
    }
    prompts = {
        "Source prompt": _node("WeftEncodePrompt", model=model, text=source_text),
        "Target prompt": _node("WeftEncodePrompt", model=model, text=target_text),
        "Negative prompt": _node("WeftEncodePrompt", model=model, text=""),
        "Encode": _node("WeftEncodeFrames", model=model, images=frames),
        "Invert": _node(
            "WeftDDIMInversion", model=model, latent=wire("Encode"), source_prompt=wire("Source prompt"), steps=STEPS
        ),
    }
    mask = {
        "Mask video": _node("LoadVideo", file=clip.MASK.name),
        "Mask frames": _node("GetVideoComponents", video=wire("Mask video")),
        "Mask": _node("ImageToMask", image=wire("Mask frames", "images"), channel="red"),
    }
    plan = {"STR-Match": _node("WeftSTRLatentOptimizer", strength=STRENGTH)}
    if masked:
        plan["Blend"] = _node("WeftLatentBlend", plan=wire("STR-Match"), mask=wire("Mask"))
    edit = {
        "Sample": _node(
            "WeftEditSampler",
            model=model,
            trajectory=wire("Invert"),
            positive=wire("Target prompt"),
            negative=wire("Negative prompt"),
            plan=wire("Blend" if masked else "STR-Match"),
            cfg=CFG,
        ),
        "Decode": _node("WeftDecodeFrames", model=model, latent=wire("Sample", "latent")),
        "Edited video": _node("CreateVideo", images=wire("Decode"), fps=wire("Source frames", "fps")),
        "Save": _node("SaveVideo", video=wire("Edited video"), filename_prefix="video/weft"),
    }
    evaluated = {"mask": wire("Mask")} if masked else {}
    figures = {
        "Evaluate": _node("WeftEvaluateEdit", source=frames, edit=wire("Decode"), **evaluated),
        "Figures": _node("PreviewAny", source=wire("Evaluate", "text")),
    }
    note = NOTE.format(**(MASKED_NOTE if masked else PLAIN_NOTE))
    return {
        "Read me": {"About this workflow": _node("MarkdownNote", text=note)},
        "Source": source,
        **({"Mask": mask} if masked else {}),
        "Prompts and noise": prompts,
        "Method": plan,
        "Edit": edit,
        "Figures": figures,
    }


def _node(type: str, **inputs: Any) -> dict[str, Any]:
    return {"type": type, "inputs": inputs}


GRAPHS = {"str_match": str_match(masked=False), "str_match_masked": str_match(masked=True)}
