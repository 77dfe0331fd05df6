"""Does a click, or a name, get the right one of two things? The small SAM and the small detector on held-out scenes.

    python -m weft.toyworld.pointing                      # the shipped ones; writes toyworld/pointing.md
    python -m weft.toyworld.pointing --weights FOLDER     # others: FOLDER/sam and FOLDER/detector; prints the tables

A click is right if the mask has an intersection over union of a half and more with what is seen of the sprite that was
clicked. A click on the background is right if it gives the background, nothing, or a mask with a low score.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ..vision.ports import Detector, Prompts, Segmenter
from ..vision.segment import choose
from . import scenes, world
from .report import bootstrap_interval
from .sam import iou, pick

HERE = Path(__file__).parent
SEED, COUNT = 4321, 200  # no model is trained on this seed
LEAST = 40  # pixels; a scene counts if so much is seen of both sprites
RIGHT = 0.5  # intersection over union
LOW = 0.5  # a score under it says that the model does not believe its mask
THRESHOLD = 0.25  # of the detector: the node's default
BORDER = 2  # pixels

CLICKS = {  # measure -> what it says
    "own": "a click on a sprite gives that sprite",
    "both_own": "so do both clicks of a scene",
    "own_iou": "IoU with the sprite that was clicked",
    "border": f"a click within {BORDER} px of its border gives that sprite",
    "border_iou": "IoU of that",
    "apart": "IoU of the two masks with each other",
    "ground": "a click on the background gives the background, nothing, or a low score",
    "ground_score": "score of that mask",
}
NAMES = {
    "found": f"the name of a sprite scores {THRESHOLD:g} and over, and its best box is that sprite's",
    "score_right": "score of the name of a sprite",
    "score_crossed": "score of the color of one and the shape of the other",
    "score_color": "score of a color that neither has, with a shape that is there",
    "score_shape": "score of a shape that neither has, with a color that is there",
    "wrong_over": f"share of those wrong names at {THRESHOLD:g} and over",
    "score_nothing": "best score of all names where there is no sprite",
}


def held_out(n: int = COUNT, seed: int = SEED) -> tuple[scenes.Scenes, Tensor, Tensor]:
    """(scenes of one frame, both sprites in sight, pictures [n, H, W, 3], what is seen of each [n, 2, H, W] bool)."""
    generator = torch.Generator().manual_seed(seed)
    drawn = scenes.draw(2 * n, generator, (2,))
    drawn = drawn.at(torch.randint(world.FRAMES, (2 * n, 1), generator=generator))
    video, masks = scenes.render(drawn)
    seen = masks[:, :, 0] > 0.5
    kept = (seen.sum((2, 3)) >= LEAST).all(1).nonzero()[:n, 0]
    return drawn[kept], video[kept, 0].movedim(1, -1), seen[kept]


# ---- clicks ---------------------------------------------------------------------------------------------------------


def clicks(segmenter: Segmenter, pictures: Tensor, seen: Tensor, seed: int = SEED) -> dict[str, Tensor]:
    """One [n] tensor a measure of CLICKS, for pictures [n, H, W, 3] and what is seen of two sprites [n, 2, H, W]."""
    generator = torch.Generator().manual_seed(seed)
    ground = ~F.max_pool2d(seen.any(1, keepdim=True).float(), 3, stride=1, padding=1)[:, 0].bool()
    inner = -F.max_pool2d(-seen.float(), 2 * BORDER + 1, stride=1, padding=BORDER) > 0
    places = [pick(where, generator) for where in (*seen.unbind(1), *(seen & ~inner).unbind(1), ground)]
    rows = []
    for picture, truth, points in zip(pictures, seen, torch.stack(places, 1).tolist()):
        ask = segmenter.look(picture)
        masks, scores = zip(*(_best(ask, point) for point in points))
        own = [iou(masks[k], truth[k % 2]).item() for k in range(4)]
        background = iou(masks[4], ~truth.any(0)).item() >= RIGHT or not masks[4].any() or scores[4] < LOW
        right = [value >= RIGHT for value in own]
        rows.append(
            {
                "own": (right[0] + right[1]) / 2,
                "both_own": float(right[0] and right[1]),
                "own_iou": (own[0] + own[1]) / 2,
                "border": (right[2] + right[3]) / 2,
                "border_iou": (own[2] + own[3]) / 2,
                "apart": iou(masks[0], masks[1]).item(),
                "ground": float(background),
                "ground_score": scores[4],
            }
        )
    return {name: torch.tensor([row[name] for row in rows]) for name in CLICKS}


def _best(ask, point: list[float]) -> tuple[Tensor, float]:
    """The mask that the node takes."""
    prompts = Prompts(points=(tuple(point),))
    return choose(ask(prompts), prompts)


# ---- names ----------------------------------------------------------------------------------------------------------


def names(detector: Detector, drawn: scenes.Scenes, pictures: Tensor, seen: Tensor) -> dict[str, Tensor]:
    """One tensor a measure of NAMES, a number a question: scenes in which a question cannot be asked are left out."""
    found: dict[str, list[float]] = {name: [] for name in NAMES}
    colors = list(world.COLORS)
    every = [f"a {c} {s}" for c in colors for s in world.SHAPES]
    bare = world.render_background(drawn.sprite(0)).movedim(1, -1)
    for i, (picture, truth) in enumerate(zip(pictures, seen)):
        looks = [(colors[drawn.color[i, k]], world.SHAPES[drawn.shape[i, k]]) for k in range(scenes.MOST)]
        for k, (color, shape) in enumerate(looks):
            boxes, score = detector.find(picture, (f"a {color} {shape}",), THRESHOLD)
            best = max(boxes, key=lambda box: box.score, default=None)
            found["found"].append(float(best is not None and _overlap(best.box, truth[k]) >= RIGHT))
            found["score_right"].append(score)
        wrong = _wrong(looks)
        for kind, (color, shape) in wrong.items():
            score = detector.find(picture, (f"a {color} {shape}",), THRESHOLD)[1]
            found[kind].append(score)
            found["wrong_over"].append(float(score >= THRESHOLD))
        found["score_nothing"].append(detector.find(bare[i], tuple(every), THRESHOLD)[1])
    return {name: torch.tensor(values) for name, values in found.items()}


def _wrong(looks: list[tuple[str, str]]) -> dict[str, tuple[str, str]]:
    """Names of nothing in a scene, each nearly right."""
    (color, shape), (other_color, other_shape) = looks
    absent = {
        "score_color": (next(c for c in world.COLORS if c not in (color, other_color)), shape),
        "score_shape": (other_color, next(s for s in world.SHAPES if s not in (shape, other_shape))),
    }
    return absent if shape == other_shape else absent | {"score_crossed": (color, other_shape)}


def _overlap(box: tuple[float, ...], mask: Tensor) -> float:
    """Of a box with the box of a mask: intersection over union."""
    y, x = (axis.float() for axis in mask.nonzero().T)
    true = x.min().item(), y.min().item(), x.max().item() + 1, y.max().item() + 1
    across = max(0.0, min(box[2], true[2]) - max(box[0], true[0]))
    both = across * max(0.0, min(box[3], true[3]) - max(box[1], true[1]))
    either = sum((b[2] - b[0]) * (b[3] - b[1]) for b in (box, true)) - both
    return both / either


def table(heading: str, measures: dict[str, str], values: dict[str, Tensor]) -> str:
    lines = [f"| {heading} | mean | 95 % interval |", "|---|---|---|"]
    for name, says in measures.items():
        low, high = bootstrap_interval(values[name])
        lines.append(f"| {says} | {values[name].mean():.3f} | {low:.3f} to {high:.3f} |")
    return "\n".join(lines)


def main() -> None:
    from ..vision.detector import load_detector
    from ..vision.sam import load_segmenter

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, help="folder of other models, of which tables are printed only")
    parser.add_argument("--n", type=int, default=COUNT, help="number of scenes")
    arguments = parser.parse_args()
    weights = arguments.weights or HERE / "weights"
    drawn, pictures, seen = held_out(arguments.n)
    tables = []
    if (file := weights / "sam" / "sam.safetensors").exists():
        tables.append(table("clicks", CLICKS, clicks(load_segmenter(file), pictures, seen)))
    if (folder := weights / "detector" / "config.json").exists():
        tables.append(table("names", NAMES, names(load_detector(folder.parent), drawn, pictures, seen)))
    said = f"{arguments.n} held-out scenes of two sprites, seed {SEED}, one frame each, on a CPU; command: "
    page = "\n\n".join(["# One of two things", said + "`python -m weft.toyworld.pointing`.", *tables]) + "\n"
    print(page)
    if arguments.weights is None:
        (HERE / "pointing.md").write_text(page)


if __name__ == "__main__":
    main()
