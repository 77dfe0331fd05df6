"""Makes clips from held-out captions with a trained toy model and says how often they show what was asked.

    python -m weft.toyworld.sample                        # 48 clips of toyworld/weights/video
    python -m weft.toyworld.sample --model image --n 64   # single frames of the image model
    python -m weft.toyworld.sample --model things         # scenes of none, one or two sprites
    python -m weft.toyworld.sample --model motion         # such clips of the image model with its motion adapter
    python -m weft.toyworld.sample --model flow           # the small LTX-Video, by Euler's method
    python -m weft.toyworld.sample --weights FOLDER       # any diffusers folder with the same parts

Plain DDIM sampling with classifier-free guidance, no Weft method: what the models can do by themselves. Prints a
markdown table and writes a contact sheet of the first clips.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

import torch
from torch import Tensor

from . import ltx, scenes, text, world
from .flow_model import load_flow, sample_flow
from .measure import sample_accuracy
from .measure_scenes import scene_accuracy
from .motion_model import load_motion, per_frame
from .report import bootstrap_interval, contact_sheet
from .steadiness import steadiness

HERE = Path(__file__).resolve().parent
HELD_OUT_SEED = 4321  # the models are trained on seed 1234
SHEET_ROWS = 12
OF_SCENES = ("things", "epsilon", "motion")  # models that know none, one or two sprites


def load(folder: Path, device: str = "cpu"):
    """The diffusers pipeline in `folder`, in float32 on `device`.

    Raises:
        FileNotFoundError: the folder holds no pipeline.
    """
    from diffusers import DiffusionPipeline

    if not (folder / "model_index.json").exists():
        raise FileNotFoundError(f"no model in {folder}: train it with python -m weft.toyworld.train {folder.name}")
    return DiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32).to(device)


@torch.no_grad()
def sample(
    pipeline, captions: list[str], steps: int = 30, guidance: float = 4.0, seed: int = 0, frames: int = world.FRAMES
) -> Tensor:
    """Clips [n, F, 3, 64, 64] in 0..1 on the CPU, one a caption; F is 1 for an image model.

    The noise is drawn on the CPU, so a seed means the same clips on every device, up to rounding.

    Raises:
        ValueError: the model wants more than noise and a caption.
    """
    unet, vae, scheduler = pipeline.unet, pipeline.vae, pipeline.scheduler
    if unet.config.in_channels != vae.config.latent_channels:
        raise ValueError(f"a UNet of {unet.config.in_channels} input channels does not sample from a caption alone")
    moving = type(unet).__name__ in ("UNet3DConditionModel", "UNetMotionModel")
    size = unet.config.sample_size
    shape = (len(captions), vae.config.latent_channels, *([frames] if moving else []), size, size)
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(unet.device)
    ids = text.token_ids(pipeline.tokenizer, [""] * len(captions) + captions)
    prompts = pipeline.text_encoder(ids.to(unet.device))[0]
    if type(unet).__name__ == "UNetMotionModel":
        prompts = per_frame(prompts, frames)
    scheduler.set_timesteps(steps)
    for t in scheduler.timesteps:
        unguided, guided = unet(torch.cat([latents, latents]), t, prompts).sample.chunk(2)
        latents = scheduler.step(unguided + guidance * (guided - unguided), t, latents).prev_sample
    latents = latents.transpose(1, 2) if moving else latents[:, None]
    pictures = vae.decode(latents.flatten(0, 1) / vae.config.scaling_factor).sample
    return (pictures / 2 + 0.5).clamp(0, 1).unflatten(0, latents.shape[:2]).cpu()


def table(scores: dict[str, Tensor]) -> str:
    """Markdown: the mean over clips of each measure and its 95 % bootstrap interval. NaN is a clip that has none."""
    lines = ["| measure | mean | 95 % interval |", "|---|---|---|"]
    for name, values in scores.items():
        values = values[~values.isnan()]
        if not len(values):
            lines.append(f"| {name} | - | - |")
            continue
        low, high = bootstrap_interval(values)
        lines.append(f"| {name} | {values.mean():.3f} | {low:.3f} to {high:.3f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("video", "image", "flow", *OF_SCENES), default="video")
    parser.add_argument("--weights", type=Path, help="the model's folder (default: toyworld/weights/MODEL)")
    parser.add_argument("--n", type=int, default=48, help="number of clips")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--guidance", type=float, default=4.0)
    parser.add_argument("--batch", type=int, default=8, help="clips at a time")
    parser.add_argument("--seed", type=int, default=0, help="of the noise; the captions are always the held-out ones")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--sheet", type=Path, help="contact sheet (default: toyworld/runs/samples-MODEL.png)")
    arguments = parser.parse_args()
    flow = arguments.model == "flow"
    reader = {"flow": load_flow, "motion": load_motion}.get(arguments.model, load)
    sampler, frames = (sample_flow, ltx.FRAMES) if flow else (sample, world.FRAMES)
    pipeline = reader(arguments.weights or HERE / "weights" / arguments.model, arguments.device)
    of, judges = (scenes, (scene_accuracy, steadiness)) if arguments.model in OF_SCENES else (world, (sample_accuracy,))
    clips = of.draw(arguments.n, torch.Generator().manual_seed(HELD_OUT_SEED), frames=frames)
    captions = of.captions(clips)
    video = torch.cat(
        [
            sampler(
                pipeline, captions[i : i + arguments.batch], arguments.steps, arguments.guidance, arguments.seed + i
            )
            for i in range(0, arguments.n, arguments.batch)
        ]
    )
    sheet = arguments.sheet or HERE / "runs" / f"samples-{arguments.model}.png"
    contact_sheet(list(video[:SHEET_ROWS]), sheet, labels=captions[:SHEET_ROWS])
    print(table({name: values for judge in judges for name, values in judge(video, clips).items()}))
    print(f"\n`{shlex.join(['python', '-m', 'weft.toyworld.sample', *sys.argv[1:]])}` on {arguments.device}")
    print(f"contact sheet: {sheet}")


if __name__ == "__main__":
    main()
