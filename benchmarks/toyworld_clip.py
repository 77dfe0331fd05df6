"""The toy world's CLIP on held-out clips: does it know what it sees, and does its direction find the right edit?

python -m weft.benchmarks.toyworld_clip    # writes benchmarks/results/toyworld_clip.md
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from itertools import product
from pathlib import Path

import torch
from torch import Tensor

from ..backbones.diffusers.loading import load_backbone
from ..measure.clip_direction import best, direction_of, scores
from ..methods.candidates import candidates
from ..toyworld import world
from ..toyworld.detector import draw_frames
from ..toyworld.measure import measure
from ..vision.clip import ClipEmbedder, load_clip
from .cases import FIRST_SEED, WEIGHTS, Case
from .rows import cell, origin

TABLE = Path(__file__).parent / "results" / "toyworld_clip.md"
SEED = 4321  # the models are trained on seed 1234
PICTURES, EDITS, CLIPS, COUNT, STEPS = 512, 256, 32, 4, 10
KINDS = ("color", "shape", "background")
SCALES = ((7.5, 1.5), (3.0, 2.0))  # the node's defaults, and what suits the toy model
PICKED = {
    "target_accuracy": ("target accuracy", 2),
    "psnr_truth": ("PSNR to truth", 2),
}

HEADER = """# CLIP direction on the toy world

Model `toyworld/clip` in float32 on a CPU, {date}, commit {commit}. Command: `python -m weft.benchmarks.toyworld_clip`.
Each cell is a mean [95 % bootstrap interval of the mean].

## Which caption fits

{pictures} held-out frames, each with all {captions} captions of the world to choose from.

| right | share |
|---|---|"""
DIRECTION = """
## Which edit scores best

Shares of {edits} held-out frames where the true edit, given its captions, scores higher than another picture. All
went through the toy VAE, as what a model makes does; so the unedited frame is not the very source, which would score
-1. A wrong value is a third one of the attribute that was to change; a wrong attribute is another one changed instead.

| asked to change | the true edit's score | over the unedited frame | over a wrong value | over a wrong attribute |
|---|---|---|---|---|"""
CHOICE = """
## Which candidate is taken

{clips} held-out edits of color, shape or both, one frame each, {count} candidates of `toyworld/instruct` in {steps}
steps. "By hand" takes the nearest to the truth, which no user has.

| cfg, image cfg | taken | {headings} |
|---|---|{dashes}"""


def retrieval(clip: ClipEmbedder) -> list[str]:
    clips, *_ = draw_frames(PICTURES, torch.Generator().manual_seed(SEED))
    all_of = list(product(*(range(k) for k in world.CHOICES.values())))  # as `captions` reads the attributes
    every = dict(zip(world.CHOICES, torch.tensor(all_of).T))
    captions = world.captions(replace(draw_frames(len(all_of), torch.Generator())[0], **every))
    fit = clip.embed_pictures(rendered(clips)) @ clip.embed_texts(captions).T
    picked = fit.argmax(1)
    right = {name: (every[name][picked] == getattr(clips, name)).float() for name in every}
    rows = {"caption": torch.stack(list(right.values())).amin(0), **right}
    head = HEADER.format(**origin(), pictures=PICTURES, captions=len(captions))
    return [head, *(f"| {name} | {cell(values, 3)} |" for name, values in rows.items())]


def preferences(clip: ClipEmbedder, vae) -> list[str]:
    lines = [DIRECTION.format(edits=EDITS)]
    for kind, other in zip(KINDS, (*KINDS[1:], KINDS[0])):
        generator = torch.Generator().manual_seed(SEED)
        source, *_ = draw_frames(EDITS, generator)
        true = world.edit(source, generator, (kind,))
        rivals = (source, third(source, true, kind, generator), world.edit(source, generator, (other,)))
        pictures = torch.stack([vae.decode(vae.encode(rendered(clips))) for clips in (true, *rivals)], 1)
        found = []
        for i, frame in enumerate(rendered(source)):
            direction = direction_of(clip, world.captions(source[i : i + 1])[0], world.captions(true[i : i + 1])[0])
            found.append(scores(clip, frame[None], pictures[i], direction))
        first, *rest = torch.tensor(found).T
        cells = [cell(first, 2), *(cell((first > rival).float(), 3) for rival in rest)]
        lines.append(f"| {kind} | " + " | ".join(cells) + " |")
    return lines


def third(source: world.Clips, true: world.Clips, kind: str, generator: torch.Generator) -> world.Clips:
    """The source with an attribute that is neither what it was nor what it should be."""
    old, new, count = getattr(source, kind), getattr(true, kind), world.CHOICES[kind]
    value = torch.randint(0, count - 2, old.shape, generator=generator)
    value = value + (value >= torch.minimum(old, new))
    return replace(source, **{kind: value + (value >= torch.maximum(old, new))})


def choices(clip: ClipEmbedder, model) -> list[str]:
    headings = " | ".join(heading for heading, _ in PICKED.values())
    lines = [CHOICE.format(clips=CLIPS, count=COUNT, steps=STEPS, headings=headings, dashes="---|" * len(PICKED))]
    for guidance, image_guidance in SCALES:
        taken = {"the first": [], "by CLIP direction": [], "by hand": []}
        for index in range(CLIPS):
            case = Case.of(index)
            source, target = (replace(c, center=c.center[:, :1]) for c in (case.source, case.target))
            told = model.text.embed(world.instructions(source, target)[0])
            scales = {"guidance": guidance, "image_guidance": image_guidance}
            numbers = {"count": COUNT, "seed": FIRST_SEED + index * COUNT, "steps": STEPS}
            found = candidates(model, rendered(source), told, **numbers, **scales)
            rows = torch.zeros(COUNT, dtype=torch.long)
            measured = measure(found.movedim(-1, 1)[:, None], source[rows], target[rows])
            figures = torch.stack([measured[name] for name in PICKED], 1)
            direction = direction_of(clip, *(world.captions(clips)[0] for clips in (source, target)))
            picks = (0, best(scores(clip, rendered(source), found, direction)), measured["psnr_truth"].argmax())
            for kept, pick in zip(taken.values(), picks):
                kept.append(figures[pick])
        for name, kept in taken.items():
            cells = [cell(v, digits) for v, (_, digits) in zip(torch.stack(kept).T, PICKED.values())]
            lines.append(f"| {guidance:g}, {image_guidance:g} | {name} | " + " | ".join(cells) + " |")
    return lines


def rendered(clips: world.Clips) -> Tensor:
    """[n, H, W, 3] of clips of one frame."""
    return world.render(clips)[0][:, 0].movedim(1, -1)


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    clip = load_clip(WEIGHTS / "clip", name="toyworld/clip")
    model = load_backbone(WEIGHTS / "instruct", name="toyworld/instruct")
    lines = [*retrieval(clip), *preferences(clip, model), *choices(clip, model)]
    TABLE.write_text("\n".join(lines) + "\n")
    print(TABLE.read_text())


if __name__ == "__main__":
    main()
