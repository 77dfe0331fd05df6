"""Segmenters from disk: SAM checkpoints (vit_h, vit_l, vit_b or any other size) and folders of SAM 2 and 2.1.

source  Kirillov et al. 2023, "Segment Anything"; Ravi et al. 2024, "SAM 2"
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..backbones.diffusers.loading import DTYPES
from ..backbones.diffusers.tensor_file import read_tensors
from ..backbones.memory import Memory, PlainMemory
from ..backbones.plain_words import in_plain_words
from .ports import Candidates, Prompts, Segmenter
from .sam_parts import package, sam_from

CHECKPOINTS = (".safetensors", ".pth", ".pt")
PIXELS = 255.0  # SAM reads pixels in 0..255


@torch.inference_mode(False)
def load_segmenter(
    path: Path | str, *, name: str | None = None, dtype: str = "auto", memory: Memory | None = None
) -> Segmenter:
    """Loads a SAM checkpoint, or a folder with a SAM 2 of transformers.

    Args:
        path: a .safetensors, .pth or .pt file with the tensors of a SAM, whatever its name; or a folder with
            config.json and safetensors of a Sam2VideoModel or Sam2Model.
        dtype: of the image encoder, which is nearly all of the model; "auto" asks `memory`.
        memory: who moves weights; plain torch by default.

    Raises:
        ValueError: nothing there, another model, or a file that is truncated or holds more than tensors.
    """
    path, memory = Path(path), memory or PlainMemory()
    if dtype not in DTYPES:
        raise ValueError(f"no dtype '{dtype}': want one of {', '.join(DTYPES)}")
    kind = memory.default_dtype() if dtype == "auto" else getattr(torch, dtype)
    name = name or path.stem
    if path.is_dir():
        from .sam2 import load_sam2

        return load_sam2(path, name, kind, memory)
    with in_plain_words(f"'{path.name}'"):
        weights = read_checkpoint(path)
        try:
            return SamSegmenter(name, sam_from(weights), kind, memory)
        except ValueError as error:
            raise ValueError(f"'{path.name}' {error}" if str(error).startswith("is not") else str(error)) from error


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, on the CPU.

    Raises:
        ValueError: there is no such file, it is truncated, or it is a pickle that holds more than tensors.
    """
    if not path.is_file():
        raise ValueError(f"there is no file '{path.name}' in '{path.parent.name}'")
    if path.suffix not in CHECKPOINTS:
        raise ValueError(f"'{path.name}' is not a checkpoint: want a file that ends in {', '.join(CHECKPOINTS)}")
    return read_tensors(path)


class SamSegmenter:
    """SAM: each frame on its own."""

    follows = False

    def __init__(self, name: str, sam: nn.Module, dtype: torch.dtype, memory: Memory):
        """
        Args:
            sam: of segment-anything, frozen.
            dtype: of the image encoder; the rest is small and stays in float32.
        """
        self.name, self.sam, self.dtype, self.memory = name, sam, dtype, memory
        encoder = sam.image_encoder.to(dtype)
        encoder.register_forward_pre_hook(lambda _, inputs: tuple(x.to(dtype) for x in inputs))
        encoder.register_forward_hook(lambda _, inputs, image: image.float())

    @torch.inference_mode(False)
    @torch.no_grad()
    def look(self, frame: Tensor) -> Callable[[Prompts], Candidates]:
        """See `Segmenter`. A picture is scaled so that its longer side fits, and padded to a square."""
        predictor, size = package().SamPredictor(self.sam), tuple(frame.shape[:2])
        side = self.sam.image_encoder.img_size
        scale = side / max(size)
        fitting = [max(1, pixels) for pixels in predictor.transform.get_preprocess_shape(*size, side)]
        with self.memory.resident(self.sam, _activations(self.sam)):
            picture = frame.to(self.memory.device, torch.float32).movedim(-1, 0)[None]
            # The predictor's own `apply_image_torch` takes batch and channels for the size.
            picture = F.interpolate(picture, fitting, mode="bilinear", antialias=True)
            predictor.set_torch_image(picture * PIXELS, size)

        @torch.inference_mode(False)
        @torch.no_grad()
        def ask(prompts: Prompts) -> Candidates:
            with self.memory.resident(self.sam):
                said = _encoded(prompts, scale, self.memory.device)
                answer = predictor.predict_torch(*said, multimask_output=prompts.ambiguous)
            return Candidates(*(values[0].cpu() for values in answer))

        return ask


def _encoded(prompts: Prompts, scale: float, device: torch.device) -> tuple[Tensor | None, ...]:
    """(points, labels, box, mask) as SAM's predictor takes them. It moves places by half a pixel itself."""
    places = (*prompts.points, *prompts.not_points)
    points = labels = boxes = guess = None
    if places:
        points = _scaled(places, scale, device)[None]
        labels = torch.tensor([[1] * len(prompts.points) + [0] * len(prompts.not_points)], device=device)
    if prompts.box is not None:
        boxes = _scaled(prompts.box, scale, device)[None]
    if prompts.guess is not None:
        guess = prompts.guess.to(device, torch.float32)[None, None]
    return points, labels, boxes, guess


def _scaled(places, scale: float, device: torch.device) -> Tensor:
    """Middles of pixels stay middles of pixels."""
    return (torch.tensor(places, dtype=torch.float32, device=device) + 0.5) * scale - 0.5


def _activations(sam: nn.Module) -> int:
    """Bytes that a pass of the image encoder needs beside the weights: one global attention map of all heads."""
    block = sam.image_encoder.blocks[-1]
    tokens = sam.image_encoder.pos_embed.shape[1] ** 2
    return 3 * block.attn.num_heads * tokens**2 * sam.image_encoder.pos_embed.element_size()
