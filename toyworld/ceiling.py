"""What no edit can be better than: held-out scenes through the VAE and back, held against themselves.

python -m weft.toyworld.ceiling                    # the shipped VAE
python -m weft.toyworld.ceiling --weights FOLDER   # any folder of an AutoencoderKL
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor

from . import scenes
from .dataset import encode
from .measure_scenes import measure_scenes
from .sample import table

SEED, COUNT = 4321, 24  # no model is trained on this seed
MEASURES = ("psnr_truth", "count_right", "color_accuracy", "shape_accuracy")


@torch.no_grad()
def round_trip(vae, video: Tensor) -> Tensor:
    """[n, F, 3, H, W] in 0..1, and so is what comes back."""
    latents = encode(vae, video)
    pictures = torch.cat([vae.decode(z).sample for z in latents.unbind()])
    return (pictures / 2 + 0.5).clamp(0, 1).unflatten(0, video.shape[:2])


def ceiling(vae, sprites: int, n: int = COUNT) -> dict[str, Tensor]:
    """MEASURES of n scenes with so many sprites, [n] each."""
    drawn = scenes.draw(n, torch.Generator().manual_seed(SEED), (sprites,))
    scores = measure_scenes(round_trip(vae, scenes.render(drawn)[0]), drawn, drawn)
    return {name: scores[name] for name in MEASURES}


def main() -> None:
    from diffusers import AutoencoderKL

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, default=Path(__file__).parent / "weights" / "vae")
    parser.add_argument("--n", type=int, default=COUNT, help="number of scenes of each kind")
    arguments = parser.parse_args()
    vae = AutoencoderKL.from_pretrained(arguments.weights, torch_dtype=torch.float32).eval()
    for sprites in range(scenes.MOST + 1):
        print(f"\n{sprites} sprites, {arguments.n} held-out scenes\n\n{table(ceiling(vae, sprites, arguments.n))}")


if __name__ == "__main__":
    main()
