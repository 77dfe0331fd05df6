"""Loads every model that ships and makes an edit of one step with each; says which libraries did it.

    python -m weft.tests.load_and_step    # from the pack's folder, by any Python that has requirements.txt

For the oldest libraries that requirements.txt allows, see `test_oldest_libraries.py`.
"""

from __future__ import annotations

import json
import re
from importlib.metadata import version
from pathlib import Path

import torch

from weft.backbones.diffusers.loading import load_backbone
from weft.backbones.diffusers.motion import load_animatediff
from weft.backbones.memory import PlainMemory
from weft.engine.edit import edit
from weft.engine.inversion import add_noise, invert
from weft.engine.ports import Backbone
from weft.toyworld.clip import CLIP, read_video
from weft.vision.clip import load_clip
from weft.vision.detector import load_detector
from weft.vision.ports import Prompts
from weft.vision.sam import load_segmenter

ROOT = Path(__file__).resolve().parents[1]
WEIGHTS = ROOT / "toyworld" / "weights"
CPU = PlainMemory("cpu")
FRAMES = 2


def bounds() -> dict[str, str]:
    """{package: the lowest version that requirements.txt allows}."""
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    return dict(re.fullmatch(r"([\w-]+)>=([\d.]+)", line).groups() for line in lines if line[:1].isalpha())


def shipped() -> list[Path]:
    """The folders of whole models."""
    return sorted(index.parent for index in WEIGHTS.glob("*/model_index.json"))


def one_step(model: Backbone, frames: torch.Tensor) -> bool:
    """Whether an edit of a model is made of numbers."""
    latents, target = model.codec.encode(frames), model.text.embed("a blue circle")
    if model.denoiser.sees_source:
        trajectory = add_noise(model, latents, model.text.embed(""), steps=1)
    else:
        trajectory = invert(model, latents, model.text.embed("a red square"), steps=1)
    return bool(model.codec.decode(edit(model, trajectory, target, guidance=2.0)).isfinite().all())


def main() -> None:
    frames = read_video(CLIP)[:FRAMES]
    how = {"dtype": "float32", "memory": CPU}
    models = {folder.name: load_backbone(folder, **how) for folder in shipped()}
    models["motion"] = load_animatediff(WEIGHTS / "epsilon", WEIGHTS / "motion", **how)
    made = {name: one_step(model, frames) for name, model in models.items()}
    sam = load_segmenter(WEIGHTS / "sam" / "sam.safetensors", memory=CPU)
    made["sam"] = bool(sam.look(frames[0])(Prompts(points=((8, 8),))).scores.isfinite().all())
    _, best = load_detector(WEIGHTS / "detector", memory=CPU).find(frames[0], ("a red square",), 0.5)
    made["detector"] = 0 <= best <= 1
    made["clip"] = bool(load_clip(WEIGHTS / "clip", memory=CPU).embed_texts(["a red square"]).isfinite().all())
    print(json.dumps({"made": made, "libraries": {name: version(name) for name in bounds()}}))


if __name__ == "__main__":
    main()
