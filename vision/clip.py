"""CLIP from a transformers folder: pictures and texts as vectors of one space.

source  Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision"
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ..backbones.diffusers.loading import frozen_module, loaded, read_json, require_readable_weights
from ..backbones.memory import Memory, PlainMemory

log = logging.getLogger(__name__)
FAMILY = "clip"  # both towers; the text encoder of a diffusion model is a "clip_text_model"
AT_ONCE = 16  # pictures
WANTED = {  # what a folder holds besides its config and weights, under one name or another
    "preprocessor_config.json": (("preprocessor_config.json",), ("processor_config.json",)),
    "tokenizer.json": (("tokenizer.json",), ("vocab.json", "merges.txt")),
}


def is_clip(folder: Path) -> bool:
    """Whether the config in a folder says so. False for what cannot be read."""
    try:
        return _family(folder) == FAMILY
    except ValueError:
        return False


@torch.inference_mode(False)
def load_clip(folder: Path | str, *, name: str | None = None, memory: Memory | None = None) -> ClipEmbedder:
    """Loads a transformers folder of a CLIPModel, in float32: a small edit moves a picture's vector so little that half
    precision would lose where to.

    Raises:
        ValueError: no such folder, another model, weights that are no safetensors, or a file that is missing or
            truncated.
    """
    folder = Path(folder)
    if (family := _family(folder)) != FAMILY:
        raise ValueError(
            f"'{folder.name}' holds a {family}: want the transformers folder of a whole CLIP, as clip-vit-large-patch14"
        )
    if not any(folder.glob("*.safetensors")):
        raise ValueError(
            f"no *.safetensors in '{folder.name}': other weights are not loaded, get the safetensors version of this "
            "model"
        )
    for file, ways in WANTED.items():
        if not any(all((folder / part).is_file() for part in way) for way in ways):
            raise ValueError(f"no {file} in '{folder.name}': is the download complete?")
    require_readable_weights(folder)
    import transformers

    model = frozen_module(transformers, "CLIPModel", folder, use_safetensors=True).float()
    images = loaded(folder, transformers, "CLIPImageProcessor")
    tokenizer = loaded(folder, transformers, "CLIPTokenizer")
    return ClipEmbedder(name or folder.name, model, images, tokenizer, memory or PlainMemory())


def _family(folder: Path) -> str | None:
    config = read_json(folder / "config.json", "a transformers model folder has one")
    return config.get("model_type") if isinstance(config, dict) else None


class ClipEmbedder:
    """See `ports.Embedder`."""

    def __init__(self, name: str, model, images, tokenizer, memory: Memory):
        """
        Args:
            model: a CLIPModel, frozen.
            images: its CLIPImageProcessor, which resizes, crops and normalises.
        """
        self.name, self.model, self.images, self.tokenizer, self.memory = name, model, images, tokenizer, memory

    @torch.inference_mode(False)
    @torch.no_grad()
    def embed_pictures(self, pictures: Tensor) -> Tensor:
        """See `Embedder`. ValueError for what are no pictures."""
        if pictures.ndim != 4 or pictures.shape[-1] != 3 or not len(pictures):
            raise ValueError(f"want pictures [n, H, W, 3], got {list(pictures.shape)}")
        vectors = []
        with self.memory.resident(self.model, _activations(self.model, min(AT_ONCE, len(pictures)))):
            for some in pictures.split(AT_ONCE):
                seen = self.model.vision_model(pixel_values=self._pixels(some)).pooler_output
                vectors.append(F.normalize(self.model.visual_projection(seen)).cpu())
        return torch.cat(vectors)

    @torch.inference_mode(False)
    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """See `Embedder`. A text that is too long is cut, with a warning."""
        longest = min(self.tokenizer.model_max_length, self.model.config.text_config.max_position_embeddings)
        for text in texts:
            if (tokens := len(self.tokenizer(text).input_ids)) > longest:
                log.warning("%s reads %d tokens and cuts the rest of '%s' (%d)", self.name, longest, text, tokens)
        read = self.tokenizer(list(texts), padding=True, truncation=True, max_length=longest, return_tensors="pt")
        ids, mask = (read[key].to(self.memory.device) for key in ("input_ids", "attention_mask"))
        with self.memory.resident(self.model):
            pooled = self.model.text_model(input_ids=ids, attention_mask=mask).pooler_output
            return F.normalize(self.model.text_projection(pooled)).cpu()

    def _pixels(self, pictures: Tensor) -> Tensor:
        """[n, 3, S, S]: pictures as the model reads them."""
        whole = (pictures.cpu().float() * 255).round().clamp(0, 255).byte().movedim(-1, 1)
        read = self.images(images=list(whole), input_data_format="channels_first", return_tensors="pt")
        return read.pixel_values.to(self.memory.device)


def _activations(model, count: int) -> int:
    """Bytes that so many pictures need beside the weights: about one layer's attention maps and hidden states."""
    config = model.config.vision_config
    tokens = (config.image_size // config.patch_size) ** 2 + 1
    per_token = config.num_attention_heads * tokens + config.hidden_size + config.intermediate_size
    return 3 * count * tokens * per_token * torch.float32.itemsize
