"""Editing without inversion: the whole clip, two things at once, a thing taken away or put in."""

from __future__ import annotations

from ...toyworld import clip
from ...toyworld.world import SIZE
from .parts import CFG, Column, Graph, clicked, figures, node, read_me, saved, source, track, wire

MODEL, STEPS, START = "toyworld/video", 24, 0.7
OF_THINGS = "toyworld/things"  # has seen scenes of none and of two things as well

NOTES = {
    "coupled_edit": """\
**Coupled Edit**: an edit without an inversion, from the clip itself (FlowEdit).
1. Press Run: the [sample clip](/api/view?filename=toy_clip.mp4&type=input) is there already.
2. Change the words of what is to change in **Target prompt**, and nothing else: what both prompts share stays.
3. **Coupled Edit** start: how far from the clip; cfg above source_cfg: how strongly; pull: back to the clip.
4. Your own clip and model: describe the clip in **Source prompt**, and start with the paper's numbers, which are the \
node's own. A mask on **Coupled Edit** keeps the rest as it is, to the bit.
""",
    "two_edits": """\
**Two edits in one run**: the thing that is clicked, and all the rest, each with a prompt of its own.
1. Press Run: the [sample clip](/api/view?filename=toy_clip.mp4&type=input) is there already.
2. **Thing prompt** describes what its mask shows when all is done; **Rest prompt** what is seen elsewhere.
3. More regions: one more **Region (Weft)** each, with a mask. The one without a mask is all that the others leave.
4. A method for one region alone: connect it to that region's `controls`.
""",
    "remove_object": """\
**Remove a thing**: its place is filled with what the target prompt says is there.
1. Press Run: the [sample clip](/api/view?filename=toy_clip.mp4&type=input) is there already.
2. **Click** on the thing. **Source prompt** names it, **Target prompt** describes the scene without it.
3. Traces left? Raise **Coupled Edit** start towards 1, or cfg, and make the mask larger.
4. Your own clip wants a text-to-video model of your own: the toy model knows its toy world alone.
""",
    "add_object": """\
**Add a thing**: into a region, the rest stays as it is.
1. Press Run: the [sample clip](/api/view?filename=toy_clip.mp4&type=input) is there already.
2. **Place** is a mask of where it goes: white is edited. **Target prompt** describes the scene with the thing in it.
3. Nothing appears? Raise **Coupled Edit** start towards 1, and cfg.
4. The toy model has never seen two things, so that here this shows the recipe and not how good it is: use a \
text-to-video model of your own.
""",
}


def coupled(name: str) -> Graph:
    """The graph of one of `NOTES`."""
    thing, ground = clip.captions()[0].split(" on ")
    wanted = clip.captions()[1]
    prompts = {"Source prompt": clip.captions()[0], "Target prompt": wanted}
    mask: Column = {}
    regions: Column = {}
    more: dict = {}
    if name == "two_edits":
        # Where the thing is, both changes are seen; elsewhere the new background alone.
        new_ground = "a teal checkered background"
        prompts = {
            "Source prompt": prompts["Source prompt"],
            "Thing prompt": f"{wanted.split(' on ')[0]} on {new_ground}",
            "Rest prompt": f"{thing} on {new_ground}",
        }
        mask = grown()  # the new shape may be larger than the old
        regions = {
            "Thing": node("WeftRegion", positive=wire("Thing prompt"), mask=wire("Grow")),
            "Rest": node("WeftRegion", plan=wire("Thing"), positive=wire("Rest prompt")),
        }
        more = {"plan": wire("Rest")}
    elif name == "remove_object":
        prompts["Target prompt"] = ground
        mask = grown()  # the rim of a thing is in the cells around it, too
        more = {"mask": wire("Grow")}
    elif name == "add_object":
        prompts["Target prompt"] = f"{thing} and a white circle on {ground}"
        mask = place()
        more = {"mask": wire("Place")}
    target = "Thing prompt" if name == "two_edits" else "Target prompt"
    model = wire("Model")
    sample = node(
        "WeftCoupledEdit",
        model=model,
        latent=wire("Encode"),
        source_prompt=wire("Source prompt"),
        target_prompt=wire(target),
        steps=STEPS,
        start=START if not more or name == "two_edits" else 1.0,
        source_cfg=1.0,
        cfg=CFG,
        **more,
    )
    return {
        "Read me": read_me(NOTES[name]),
        "Source": source(OF_THINGS if name == "remove_object" else MODEL),
        **({"Mask": mask} if mask else {}),
        "Prompts": {
            **{title: node("WeftEncodePrompt", model=model, text=text) for title, text in prompts.items()},
            "Encode": node("WeftEncodeFrames", model=model, images=wire("Source frames", "images")),
        },
        **({"Regions": regions} if regions else {}),
        "Edit": {
            "Coupled Edit": sample,
            "Decode": node("WeftDecodeFrames", model=model, latent=wire("Coupled Edit", "latent")),
            **saved(wire("Decode")),
        },
        "Figures": figures(wire("Decode"), **({"mask": more["mask"]} if "mask" in more else {})),
    }


def grown() -> Column:
    """The clip's thing and some pixels around it."""
    grow = node("GrowMask", mask=wire("Track", "mask"), expand=4, tapered_corners=True)
    return clicked() | {"Track": track("Click"), "Grow": grow}


def place() -> Column:
    """A mask of one spot of the picture, by core's nodes: above the path of the clip's own thing."""
    size = {"width": SIZE, "height": SIZE}
    return {
        "Nothing": node("SolidMask", value=0.0, **size),
        "Spot": node("SolidMask", value=1.0, width=24, height=22),
        "Place": node("MaskComposite", destination=wire("Nothing"), source=wire("Spot"), x=20, y=0, operation="add"),
    }
