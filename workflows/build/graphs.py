"""The shipped workflows as data: what each node is, what its widgets say, and in which column it stands.

The titles matter: they are what `--set "Title.input=value"` of the headless client and the readers of a graph go by.
"""

from __future__ import annotations

from typing import Any

from ...toyworld import clip, world

STEPS = 50
STRENGTH = 0.5  # of STR-Match, for toyworld/video
CFG = 4.0
MODEL, SAM, DETECTOR = "toyworld/video", "toyworld/sam", "toyworld/detector"
EDITOR, EDITOR_CFG = "toyworld/instruct", 2.0
IMAGE_MODEL, BASES, IMAGE_STEPS = "toyworld/image", 64, 25
BACKGROUND = "make the background teal striped"
ADAPT = {"steps": 100, "rate": 2e-4}  # the paper gives no numbers

NOTE = """\
**STR-Match{title}**: rewrites what moves in a clip and keeps its layout and motion.
1. Upload `workflows/toy_clip.mp4` of this pack in the Load Video node, then press Run.
2. Change the words of what is to change in **Target prompt**, and nothing else.
3. **STR-Match** strength: more follows the source, less edits more. **Sample** cfg: how hard to follow the prompt.
4. Your own clip and model: put a diffusers folder (Zeroscope, ModelScope) into `models/diffusers`, choose it in \
**Model**, describe your clip in **Source prompt**, and start with the paper's numbers: strength 0.01, cfg 7.5, and \
**Negative prompt** disconnected, so that guidance moves away from the source's prompt.{own}
"""
PLAIN_NOTE = {"title": "", "own": ""}
MASKED_NOTE = {
    "title": " inside a mask",
    "own": " Put a SAM into `models/sams` or a SAM 2 into `models/sam2`, choose it in **SAM**, and say in **Click** "
    "where the thing is: `x,y` in pixels of the first frame. Raise **Blend** dilate if the new shape is larger.",
}
MASK_NOTE = """\
**A mask by {way}**, through the whole clip, for any node that takes a MASK.
1. Upload `workflows/toy_clip.mp4` of this pack in the Load Video node, then press Run.
2. {how}
3. **Track** follows the thing from there. **Confidence** says how sure it is of each frame, and where it lost it.
4. Your own clip: put {models}. Those of the toy world know the toy world only.
5. Instead of saving it, connect **Track** to Latent Blend, or to any node of ComfyUI.
"""
CLICK_NOTE = {
    "way": "click",
    "how": "**Click** says where the thing is: `x,y` in pixels of the first frame, several separated by `;`.",
    "models": "a SAM into `models/sams` or a SAM 2 into `models/sam2` and choose it in **SAM**",
}
TEXT_NOTE = {
    "way": "text",
    "how": "**Find** says what to look for, and shows its box; **Mask** makes the mask.",
    "models": "a Grounding DINO into `models/grounding-dino` or an OWLv2 into `models/owlv2`, a SAM into `models/sams` "
    "or a SAM 2 into `models/sam2`, and choose them in **Find** and **SAM**",
}

STEM_NOTE = """\
**STEM inversion, {title}**: the clip is inverted through bases that all its frames share, and edited by an image model.
1. Upload `workflows/toy_clip.mp4` of this pack in the Load Video node, then press Run.
2. Change the words of what is to change in **Target prompt**, and nothing else{also}.
3. **Replay PSNR** says how well the inversion gives the clip back: under 25 dB, take more steps.
4. {turn}
5. Your own clip and model: put a Stable Diffusion 1.x or 2.x folder into `models/diffusers`, choose it in **Model**, \
describe your clip in **Source prompt**, and take the paper's numbers: 256 bases, 50 steps, cfg 7.5{own}.
"""
STEM_NOTES = {
    "token_flow": {
        "title": "TokenFlow",
        "also": "",
        "turn": "**TokenFlow** feature_steps and attention_steps: more keep the layout, less edit more.",
        "own": ", 40 and 25 injection steps, 8 frames a batch",
    },
    "fate_zero": {
        "title": "FateZero",
        "also": "; name the words it replaces in **FateZero** words",
        "turn": "**FateZero** threshold: less edits more of the picture. self_replace: less changes the shape more.",
        "own": ", key_frames previous_and_first",
    },
}
VIA_NOTE = """\
**VIA, {title}**: an instruction edits every frame, by an image model that is given the frame and the text.
1. Upload `workflows/toy_clip.mp4` of this pack in the Load Video node, then press Run.
2. Say what to do in **Instruction**{also}.
3. {first}
4. {then}
5. Your own clip and model: put an InstructPix2Pix or a MagicBrush into `models/diffusers`, choose it in **Model**, \
and start with the paper's numbers: cfg 7.5, image_cfg 1.5, 10 steps. Low on memory? Lower chunk_frames of **Sample**.
"""
VIA_NOTES = {
    "local": {
        "title": "one thing of the picture",
        "also": "",
        "first": "**Click** says where the thing is: `x,y` in pixels of the first frame. Around it the source stays.",
        "then": "**Blend** dilate lets the new shape be larger; feather softens its edge; `paper_ramp` is VIA's own.",
    },
    "global": {
        "title": "the whole picture",
        "also": ", and the same in **Adapted text**",
        "first": "**Candidates** edits one frame with several seeds: put the number of the best into its choice.",
        "then": "**Adapt** learns from that pair what you mean, and **Sample** edits all frames so.",
    },
    "long": {
        "title": "a long clip on several machines",
        "also": "",
        "first": "As it is, one machine does it all, some frames at a time.",
        "then": "For several, install ComfyUI-Distributed on all, and set **Chunks** count to their number. Connect a "
        "*Distributed Value* to **Part** index: 0 for the master, 1, 2, ... for the workers, as INT. Put a "
        "*Distributed Collector* between **Decode** and **Merge**. Each worker edits its part, the master merges.",
    },
}

COVE_NOTE = """\
**COVE**: what belongs together in the frames of a clip is found first, and then attends to itself, in the inversion \
and in the edit.
1. Upload `workflows/toy_clip.mp4` of this pack in the Load Video node, then press Run.
2. **Matches** shows where points of the first frame are in the others. If they jump about, raise ensemble of **Find**.
3. Change the words of what is to change in **Target prompt**, and nothing else.
4. **Inject** feature_steps and attention_steps: more keep the layout, less edit more. **Sample** cfg: how hard to \
follow the prompt. **Along matches** strength: 0 leaves spatio-temporal attention alone.
5. Your own clip and model: put a Stable Diffusion 1.x or 2.x folder into `models/diffusers`, choose it in **Model**, \
describe your clip in **Source prompt**, and take the paper's cfg of 7.5 and levels finest in **Along matches**; all \
other numbers are the paper's already.
"""


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
        "SAM": _node("WeftLoadSAM", model=SAM),
        "Click": _node("WeftSAMMask", sam=wire("SAM"), images=frames, positive=_click()),
        "Track": _track("Click"),
    }
    plan = {"STR-Match": _node("WeftSTRLatentOptimizer", strength=STRENGTH)}
    if masked:
        plan["Blend"] = _node("WeftLatentBlend", plan=wire("STR-Match"), mask=wire("Track", "mask"))
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
    evaluated = {"mask": wire("Track", "mask")} if masked else {}
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


def mask(by_text: bool) -> dict[str, dict[str, Any]]:
    """A mask through the clip, from a click or from a text, as a video."""
    frames = wire("Source frames", "images")
    load = {"SAM": _node("WeftLoadSAM", model=SAM)}
    if by_text:
        what = " ".join(clip.captions()[0].split()[:3])  # "a yellow square"
        find = {"Find": _node("WeftTextToBoxes", model=DETECTOR, images=frames, text=what, frames="0")}
        first = {"Mask": _node("WeftSAMMask", sam=wire("SAM"), images=frames, positive="", boxes=wire("Find", "boxes"))}
    else:
        find, first = {}, {"Click": _node("WeftSAMMask", sam=wire("SAM"), images=frames, positive=_click())}
    note = MASK_NOTE.format(**(TEXT_NOTE if by_text else CLICK_NOTE))
    return {
        "Read me": {"About this workflow": _node("MarkdownNote", text=note)},
        "Source": {
            "Source video": _node("LoadVideo", file=clip.CLIP.name),
            "Source frames": _node("GetVideoComponents", video=wire("Source video")),
        },
        "First frame": {**load, **find, **first},
        "All frames": {
            "Track": _track(*first),
            "Confidence": _node("PreviewAny", source=wire("Track", "confidence")),
        },
        "Mask video": {
            "Mask frames": _node("MaskToImage", mask=wire("Track", "mask")),
            "Masks": _node("CreateVideo", images=wire("Mask frames"), fps=wire("Source frames", "fps")),
            "Save": _node("SaveVideo", video=wire("Masks"), filename_prefix="video/weft_mask"),
        },
    }


def via(kind: str) -> dict[str, dict[str, Any]]:
    """An instruction for every frame: one thing ("local"), the whole picture ("global") or a clip in parts ("long")."""
    frames, text = wire("Source frames", "images"), clip.instruction()
    source = {
        "Source video": _node("LoadVideo", file=clip.CLIP.name),
        "Source frames": _node("GetVideoComponents", video=wire("Source video")),
        "Model": _node("WeftLoadModel", model=EDITOR, dtype="auto"),
    }
    model, edited, plan, evaluated, part, chunk = wire("Model"), wire("Decode"), wire("Gather-swap"), {}, frames, {}
    first, blend, merge, said = {}, {}, {}, "Instruction"
    if kind == "local":
        load = {"SAM": _node("WeftLoadSAM", model=SAM)}
        click = {"Click": _node("WeftSAMMask", sam=wire("SAM"), images=frames, positive=_click())}
        first = {"Mask": {**load, **click, "Track": _track("Click")}}
        blend = {"Blend": _node("WeftLatentBlend", plan=plan, mask=wire("Track", "mask"), dilate=2)}
        plan, evaluated = wire("Blend"), {"mask": wire("Track", "mask")}
    if kind == "global":
        text, said = BACKGROUND, "Adapted text"
        first = {"Adapt to one frame": _adaptation(frames)}
        model = wire("Adapt", "model")
    if kind == "long":
        part, chunk, edited = wire("Part", "images"), {"chunk": wire("Part", "chunk")}, wire("Merge")
        cut = _node("WeftChunkSelect", chunks=wire("Chunks"), images=frames, index=0)
        first = {"Part of the clip": {"Chunks": _node("WeftChunkPlan", images=frames, count=1), "Part": cut}}
        merge = {"Merge": _node("WeftChunkMerge", chunks=wire("Chunks"), images=wire("Decode"))}
    start = {
        said: _node("WeftEncodePrompt", model=model, text=text),
        "Encode": _node("WeftEncodeFrames", model=model, images=part),
        "Noise": _node("WeftAddNoise", model=model, latent=wire("Encode"), **chunk),
    }
    sample = {"model": model, "trajectory": wire("Noise"), "positive": wire(said), "plan": plan}
    sample |= {"cfg": EDITOR_CFG, "chunk_frames": 4 if kind == "long" else 0}
    note = VIA_NOTE.format(**VIA_NOTES[kind])
    return {
        "Read me": {"About this workflow": _node("MarkdownNote", text=note)},
        "Source": source,
        **first,
        "Instruction and noise": start,
        "Method": {"Gather-swap": _node("WeftGatherSwapAttention", **chunk), **blend},
        "Edit": {
            "Sample": _node("WeftEditSampler", **sample),
            "Decode": _node("WeftDecodeFrames", model=model, latent=wire("Sample", "latent")),
            **merge,
            "Edited video": _node("CreateVideo", images=edited, fps=wire("Source frames", "fps")),
            "Save": _node("SaveVideo", video=wire("Edited video"), filename_prefix="video/weft"),
        },
        "Figures": {
            "Evaluate": _node("WeftEvaluateEdit", source=frames, edit=edited, **evaluated),
            "Figures": _node("PreviewAny", source=wire("Evaluate", "text")),
        },
    }


def stem(editor: str) -> dict[str, dict[str, Any]]:
    """An edit from a STEM inversion, by "token_flow" or "fate_zero", and the replay that shows what it kept."""
    source_text, target_text = clip.captions()
    model, frames = wire("Model"), wire("Source frames", "images")
    numbers = {"latent": wire("Encode"), "source_prompt": wire("Source prompt"), "steps": IMAGE_STEPS, "bases": BASES}
    sample = {"model": model, "trajectory": wire("Invert", "trajectory")}
    if editor == "token_flow":
        steps = {"feature_steps": IMAGE_STEPS * 4 // 5, "attention_steps": IMAGE_STEPS // 2}
        method = {"TokenFlow": _node("WeftTokenFlow", batch=4, **steps)}
    else:
        words = " ".join(a for a, b in zip(source_text.split(), target_text.split()) if a != b)
        method = {"FateZero": _node("WeftFateZero", words=words, key_frames="own")}
    edited = {"positive": wire("Target prompt"), "negative": wire("Negative prompt"), "plan": wire(*method), "cfg": CFG}
    replayed = {"positive": wire("Source prompt"), "plan": wire("Invert", "replay"), "cfg": 1.0}
    return {
        "Read me": {"About this workflow": _node("MarkdownNote", text=STEM_NOTE.format(**STEM_NOTES[editor]))},
        "Source": {
            "Source video": _node("LoadVideo", file=clip.CLIP.name),
            "Source frames": _node("GetVideoComponents", video=wire("Source video")),
            "Model": _node("WeftLoadModel", model=IMAGE_MODEL, dtype="auto"),
        },
        "Prompts and noise": {
            "Source prompt": _node("WeftEncodePrompt", model=model, text=source_text),
            "Target prompt": _node("WeftEncodePrompt", model=model, text=target_text),
            "Negative prompt": _node("WeftEncodePrompt", model=model, text=""),
            "Encode": _node("WeftEncodeFrames", model=model, images=frames),
            "Invert": _node("WeftSTEMInversion", model=model, **numbers),
        },
        "Replay": {
            "Replay": _node("WeftEditSampler", **sample, **replayed),
            "Replayed frames": _node("WeftDecodeFrames", model=model, latent=wire("Replay", "latent")),
            "Compare": _node("WeftEvaluateEdit", source=frames, edit=wire("Replayed frames")),
            "Replay PSNR": _node("PreviewAny", source=wire("Compare", "text")),
        },
        "Method": method,
        "Edit": {
            "Sample": _node("WeftEditSampler", **sample, **edited),
            "Decode": _node("WeftDecodeFrames", model=model, latent=wire("Sample", "latent")),
            "Edited video": _node("CreateVideo", images=wire("Decode"), fps=wire("Source frames", "fps")),
            "Save": _node("SaveVideo", video=wire("Edited video"), filename_prefix="video/weft"),
        },
        "Figures": {
            "Evaluate": _node("WeftEvaluateEdit", source=frames, edit=wire("Decode")),
            "Figures": _node("PreviewAny", source=wire("Evaluate", "text")),
        },
    }


def cove() -> dict[str, dict[str, Any]]:
    """Correspondences of the source that guide inversion and edit; one plan for both, as injection needs an edit."""
    source_text, target_text = clip.captions()
    model, frames, plan = wire("Model"), wire("Source frames", "images"), wire("Over the clip")
    found = wire("Find")
    start = {"latent": wire("Encode"), "source_prompt": wire("Source prompt"), "plan": plan}
    sample = {"trajectory": wire("Invert"), "positive": wire("Target prompt"), "negative": wire("Negative prompt")}
    return {
        "Read me": {"About this workflow": _node("MarkdownNote", text=COVE_NOTE)},
        "Source": {
            "Source video": _node("LoadVideo", file=clip.CLIP.name),
            "Source frames": _node("GetVideoComponents", video=wire("Source video")),
            "Model": _node("WeftLoadModel", model=IMAGE_MODEL, dtype="auto"),
        },
        "Prompts": {
            "Source prompt": _node("WeftEncodePrompt", model=model, text=source_text),
            "Target prompt": _node("WeftEncodePrompt", model=model, text=target_text),
            "Negative prompt": _node("WeftEncodePrompt", model=model, text=""),
            "Encode": _node("WeftEncodeFrames", model=model, images=frames),
        },
        "Correspondence": {
            "Find": _node("WeftCorrespondence", model=model, latent=wire("Encode")),
            "Matches": _node("WeftPreviewCorrespondence", correspondence=found, images=frames, points=_point()),
        },
        "Method": {
            "Inject": _node("WeftFeatureInjection", feature_steps=40, attention_steps=40),
            "Along matches": _node(
                "WeftCorrespondenceAttention", plan=wire("Inject"), correspondence=found, levels="all"
            ),
            "Over the clip": _node("WeftSpatioTemporalAttention", plan=wire("Along matches")),
        },
        "Edit": {
            "Invert": _node("WeftDDIMInversion", model=model, **start, steps=100, edit_steps=50),
            "Sample": _node("WeftEditSampler", model=model, **sample, plan=plan, cfg=CFG),
            "Decode": _node("WeftDecodeFrames", model=model, latent=wire("Sample", "latent")),
            "Edited video": _node("CreateVideo", images=wire("Decode"), fps=wire("Source frames", "fps")),
            "Save": _node("SaveVideo", video=wire("Edited video"), filename_prefix="video/weft"),
        },
        "Figures": {
            "Evaluate": _node("WeftEvaluateEdit", source=frames, edit=wire("Decode")),
            "Figures": _node("PreviewAny", source=wire("Evaluate", "text")),
        },
    }


def _adaptation(frames: dict[str, str]) -> dict[str, Any]:
    """Candidates of one frame, and an adapter that learns from the best."""
    told = {"model": wire("Model"), "instruction": wire("Instruction")}
    pair = {"source": wire("Candidates", "source"), "edited": wire("Candidates", "edited")}
    return {
        "Instruction": _node("WeftEncodePrompt", model=wire("Model"), text=BACKGROUND),
        "Candidates": _node("WeftEditCandidates", **told, images=frames, cfg=EDITOR_CFG),
        "Adapt": _node("WeftTestTimeAdaptation", **told, **pair, **ADAPT),
    }


def _click() -> str:
    """The middle of the shipped clip's sprite in its first frame."""
    x, y = clip.source_clip().center[0, 0].round().int().tolist()
    return f"{x},{y}"


def _point() -> str:
    """The same as shares of width and height."""
    x, y = (clip.source_clip().center[0, 0] / world.SIZE).tolist()
    return f"{x:.2f} {y:.2f}"


def _track(first: str) -> dict[str, Any]:
    return _node(
        "WeftTrackMask",
        sam=wire("SAM"),
        images=wire("Source frames", "images"),
        mask=wire(first, "mask"),
        frames=wire(first, "frames"),
    )


def _node(type: str, **inputs: Any) -> dict[str, Any]:
    return {"type": type, "inputs": inputs}


GRAPHS = {
    "str_match": str_match(masked=False),
    "str_match_masked": str_match(masked=True),
    "mask_by_click": mask(by_text=False),
    "mask_by_text": mask(by_text=True),
    "via_local": via("local"),
    "via_global": via("global"),
    "via_long_distributed": via("long"),
    "cove": cove(),
    "stem_tokenflow": stem("token_flow"),
    "stem_fatezero": stem("fate_zero"),
}
