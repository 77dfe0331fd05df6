"""STR-Match, of the whole clip or inside a mask."""

from __future__ import annotations

from .parts import CFG, Graph, clicked, decode, figures, node, prompts, read_me, saved, source, track, wire

MODEL, STEPS = "toyworld/video", 50
STRENGTH = 0.5  # of STR-Match, for this model

NOTE = """\
**STR-Match{title}**: rewrites what moves in a clip and keeps its layout and motion.
1. Press Run: the [sample clip](/api/view?filename=toy_clip.mp4&type=input) is there already.
2. Change the words of what is to change in **Target prompt**, and nothing else.
3. **STR-Match** strength: more follows the source, less edits more. **Sample** cfg: how hard to follow the prompt.
4. Your own clip and model: put a diffusers folder (Zeroscope, ModelScope) into `models/diffusers`, choose it in \
**Model**, describe your clip in **Source prompt**, and start with the paper's numbers: strength 0.01, cfg 7.5, and \
**Negative prompt** disconnected, so that guidance moves away from the source's prompt.{own}
5. Too little changes? Raise cfg, then lower strength; **Sample** says how far strength moves the latent at each step.
"""
PLAIN_NOTE = {"title": "", "own": ""}
MASKED_NOTE = {
    "title": " inside a mask",
    "own": " Put a SAM into `models/sams` or a SAM 2 into `models/sam2`, choose it in **SAM**, and click the "
    "thing in the picture of **Click**; Enter shows its mask. Raise **Blend** dilate if the new shape is larger.",
}


def str_match(masked: bool) -> Graph:
    model, start = wire("Model"), {"latent": wire("Encode"), "source_prompt": wire("Source prompt"), "steps": STEPS}
    plan = {"STR-Match": node("WeftSTRLatentOptimizer", strength=STRENGTH)}
    mask = {"mask": wire("Track", "mask")} if masked else {}
    if masked:
        plan["Blend"] = node("WeftLatentBlend", plan=wire("STR-Match"), **mask)
    sample = node(
        "WeftEditSampler",
        model=model,
        trajectory=wire("Invert"),
        positive=wire("Target prompt"),
        negative=wire("Negative prompt"),
        plan=wire("Blend" if masked else "STR-Match"),
        cfg=CFG,
        source_latent=start["latent"],
        source_prompt=start["source_prompt"],
    )
    return {
        "Read me": read_me(NOTE.format(**(MASKED_NOTE if masked else PLAIN_NOTE))),
        "Source": source(MODEL),
        **({"Mask": clicked() | {"Track": track("Click")}} if masked else {}),
        "Prompts and noise": prompts() | {"Invert": node("WeftDDIMInversion", model=model, **start)},
        "Method": plan,
        "Edit": {"Sample": sample, "Decode": decode(model), **saved(wire("Decode"))},
        "Figures": figures(wire("Decode"), **mask),
    }
