"""Contact sheets of the scenes, their edits, and the masks that clicks give, to be looked at.

    python -m weft.toyworld.sheets    # writes toyworld/sheets/scenes.png, edits.png and masks.png

All are held out: no model is trained on this seed.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from . import scenes
from .pointing import held_out
from .report import contact_sheet
from .sam import pick

HERE = Path(__file__).parent
FOLDER = HERE / "sheets"
SEED = 4321
TINTS = torch.tensor([[1.0, 0.3, 0.2], [0.2, 0.5, 1.0]])  # of the first sprite's mask and the second's


def painted(masks: Tensor) -> Tensor:
    """[F, 3, H, W]: the masks [2, F, H, W] of one scene, each in a color of its own."""
    return torch.einsum("kfhw,kc->fchw", masks, TINTS)


def scene_rows(n: int = 6) -> tuple[list[Tensor], list[str]]:
    """Rows of pictures and of masks: no sprite, one, two apart, and the rest crossing."""
    generator = torch.Generator().manual_seed(SEED)
    drawn = [
        scenes.draw(1, generator, (count,), (kind,))
        for count, kind in [(0, "apart"), (1, "apart"), (2, "apart"), *[(2, "cross")] * (n - 3)]
    ]
    rows, labels = [], []
    for scene in drawn:
        video, masks = scenes.render(scene)
        rows += [video[0], painted(masks[0])]
        labels += [scenes.captions(scene)[0], "  what is seen of the first and of the second"]
    return rows, labels


def edit_rows() -> tuple[list[Tensor], list[str]]:
    """Rows of a source and of its edit, one pair a kind."""
    generator, rows, labels = torch.Generator().manual_seed(SEED), [], []
    for kind in scenes.EDITS:
        source, target = scenes.draw_edits(kind, 1, generator)
        rows += [scenes.render(s)[0][0] for s in (source, target)]
        away = scenes.negatives(source, target)[0]
        labels += [scenes.captions(source)[0], f"{kind}: {scenes.captions(target)[0]}  (away: {away or 'nothing'})"]
    return rows, labels


def mask_rows(n: int = 8) -> tuple[list[Tensor], list[str]]:
    """A scene a row: the picture, then what the shipped SAM makes of a click on the first sprite, on the second, and on
    the background."""
    from ..vision.prompts import read_prompts
    from ..vision.sam import load_segmenter
    from ..vision.segment import segment

    segmenter = load_segmenter(HERE / "weights" / "sam" / "sam.safetensors")
    generator, (drawn, pictures, seen) = torch.Generator().manual_seed(SEED), held_out(n)
    rows = []
    for picture, masks in zip(pictures, seen):
        clicks = pick(torch.cat([masks, ~masks.any(0, keepdim=True)]), generator).tolist()
        shown = [segment(segmenter, picture[None], read_prompts(f"{x},{y}")).pictures[0] for x, y in clicks]
        rows.append(torch.stack([picture, *shown]))
    return rows, scenes.captions(drawn)


def main() -> None:
    sheets = {"scenes": scene_rows(), "edits": edit_rows(), "masks": mask_rows()}
    for name, (rows, labels) in sheets.items():
        contact_sheet(rows, FOLDER / f"{name}.png", scale=2, labels=labels)
        print(FOLDER.name, f"{name}.png")


if __name__ == "__main__":
    main()
