"""Trains the toy world's models: one command a model, each resumable, in this order.

    python -m weft.toyworld.train vae        # frames <-> latents
    python -m weft.toyworld.train image      # UNet2DConditionModel and the text encoder that all models share
    python -m weft.toyworld.train video      # UNet3DConditionModel, its spatial layers started from the image model
    python -m weft.toyworld.train words      # the video model on, with a text encoder of its own
    python -m weft.toyworld.train shapes     # and on, half of it with squares and circles, which it took for one thing
    python -m weft.toyworld.train detail     # the image model on: attention at 16x16, and the words it confused
    python -m weft.toyworld.train crisp      # the VAE on, with two sprites: a VAE beside it
    python -m weft.toyworld.train things     # the video model on, with none, one or two sprites: a model beside it
    python -m weft.toyworld.train epsilon    # the image model on, to predict the noise: a model beside it
    python -m weft.toyworld.train motion     # motion modules for that one, which make it a video model (AnimateDiff)
    python -m weft.toyworld.train paths      # and on, with sprites in every clip
    python -m weft.toyworld.train flow_vae   # frames <-> latents of a small LTX-Video; on its own
    python -m weft.toyworld.train flow       # its transformer, which hears the video model's text encoder
    python -m weft.toyworld.train instruct   # 8-channel UNet2DConditionModel (InstructPix2Pix), from the image model
    python -m weft.toyworld.train sam        # a small SAM, for masks by click; on its own
    python -m weft.toyworld.train clicks     # and on, with two sprites, so that the click decides which
    python -m weft.toyworld.train detector   # a small OWLv2, for boxes by text; on its own
    python -m weft.toyworld.train clip       # a small CLIP, to judge edits; on its own

`--steps N` shortens a run. Working files go to `toyworld/runs`, finished models to `toyworld/weights/<model>` in fp16
(diffusers folders; the flow model one checkpoint for ComfyUI), their logs to `toyworld/logs`.
"""

from __future__ import annotations

import argparse
import shutil
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

from .detector import train_detector
from .flow_model import train_flow
from .flow_vae import train_flow_vae
from .image_model import train_detail, train_epsilon, train_image
from .instruct_model import train_instruct
from .judge import train_judge
from .motion_model import train_motion, train_paths
from .sam import train_clicks, train_sam
from .training import Recipe
from .vae import train_crisp, train_vae
from .video_model import train_shapes, train_things, train_video, train_words

HERE = Path(__file__).resolve().parent
RECIPES = {
    "vae": Recipe(steps=900, peak_rate=3e-3, weight_decay=1e-4, warmup=50, ema=0.99, seed=1),
    "image": Recipe(steps=3200, peak_rate=2e-3, seed=2),
    "video": Recipe(steps=3000, peak_rate=1.5e-3, seed=3),
    "words": Recipe(steps=1000, peak_rate=1.2e-3, warmup=50, seed=5),
    "shapes": Recipe(steps=650, peak_rate=1.5e-3, warmup=30, ema=0.99, seed=6),
    "detail": Recipe(steps=1400, peak_rate=1.5e-3, warmup=50, seed=7),
    "crisp": Recipe(steps=5000, peak_rate=2e-3, weight_decay=1e-4, warmup=50, ema=0.995, seed=10),
    "things": Recipe(steps=4000, peak_rate=1e-3, warmup=50, ema=0.99, seed=8),
    "epsilon": Recipe(steps=5000, peak_rate=1.5e-3, warmup=50, seed=9),
    "motion": Recipe(steps=1000, peak_rate=2e-3, warmup=50, ema=0.99, seed=13),
    "paths": Recipe(steps=400, peak_rate=2e-3, warmup=20, ema=0.99, seed=14),
    "flow_vae": Recipe(steps=8000, peak_rate=3e-3, weight_decay=1e-4, ema=0.995, seed=11),
    "flow": Recipe(steps=12000, peak_rate=1e-3, warmup=300, ema=0.999, seed=12),
    "instruct": Recipe(steps=1500, peak_rate=1.5e-3, seed=4),
    "sam": Recipe(steps=1200, peak_rate=1e-3, seed=1234),
    "clicks": Recipe(steps=2500, peak_rate=1e-3, warmup=50, ema=0.99, seed=1234),
    "detector": Recipe(steps=5000, peak_rate=1.5e-3, seed=1234),
    "clip": Recipe(steps=4000, peak_rate=1.5e-3, seed=1234),
}
MODELS = {
    "vae": train_vae,
    "image": train_image,
    "video": train_video,
    "words": train_words,
    "shapes": train_shapes,
    "detail": train_detail,
    "crisp": train_crisp,
    "things": train_things,
    "epsilon": train_epsilon,
    "motion": train_motion,
    "paths": train_paths,
    "flow_vae": train_flow_vae,
    "flow": train_flow,
    "instruct": train_instruct,
    "sam": train_sam,
    "clicks": train_clicks,
    "detector": train_detector,
    "clip": train_judge,
}
DRAW_AS_THEY_GO = {
    "vae",
    "crisp",
    "flow_vae",
    "sam",
    "clicks",
    "detector",
    "clip",
}  # the others are trained on a set of clips


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("--steps", type=int, help="train for fewer steps than the recipe")
    parser.add_argument("--clips", type=int, help="size of the training set, if not the run's own")
    parser.add_argument("--seconds", type=float, help="as many steps as fit, by the speed of the first; the log counts")
    parser.add_argument("--device", default="cpu", help="cpu, or cuda where there is one")
    parser.add_argument("--runs", type=Path, default=HERE / "runs", help="checkpoints and caches")
    parser.add_argument("--out", type=Path, default=HERE / "weights", help="finished models")
    parser.add_argument("--logs", type=Path, default=HERE / "logs", help="logs of finished runs")
    arguments = parser.parse_args()
    recipe = replace(RECIPES[arguments.model], device=arguments.device)
    if arguments.steps:
        recipe = replace(recipe, steps=arguments.steps)
    if arguments.seconds:
        recipe = replace(recipe, deadline=time.monotonic() + arguments.seconds)
    model = MODELS[arguments.model]
    if arguments.clips and arguments.model not in DRAW_AS_THEY_GO:
        model = partial(model, clips=arguments.clips)
    model(recipe, arguments.runs, arguments.out)
    arguments.logs.mkdir(parents=True, exist_ok=True)
    shutil.copy(arguments.runs / f"{arguments.model}.log", arguments.logs)


if __name__ == "__main__":
    main()
