"""Detectors that read text, from transformers folders: Grounding DINO, OWL-ViT and OWLv2.

source  Liu et al. 2023, "Grounding DINO"; Minderer et al. 2023, "Scaling Open-Vocabulary Object Detection" (OWLv2)
"""

from __future__ import annotations

from inspect import signature
from pathlib import Path

import torch
from torch import Tensor

from ..backbones.diffusers.loading import frozen_module, loaded, read_json, require_readable_weights
from ..backbones.memory import Memory, PlainMemory
from .ports import Detection

FAMILIES = {  # model_type -> (model class, processor class)
    "grounding-dino": ("GroundingDinoForObjectDetection", "GroundingDinoProcessor"),
    "mm-grounding-dino": ("MMGroundingDinoForObjectDetection", "GroundingDinoProcessor"),
    "owlv2": ("Owlv2ForObjectDetection", "Owlv2Processor"),
    "owlvit": ("OwlViTForObjectDetection", "OwlViTProcessor"),
}


@torch.inference_mode(False)
def load_detector(folder: Path | str, *, name: str | None = None, memory: Memory | None = None) -> TextDetector:
    """Loads a transformers folder, in float32: these models are small, and some layers fail in half precision.

    Raises:
        ValueError: no such folder, another model, a file that is missing or truncated, or packages that are missing.
    """
    folder = Path(folder)
    family = read_json(folder / "config.json", "a transformers model folder has one").get("model_type")
    if family not in FAMILIES:
        raise ValueError(f"'{folder.name}' holds a {family}: want one of {', '.join(FAMILIES)}")
    require_readable_weights(folder)
    import transformers

    model_class, processor_class = FAMILIES[family]
    model = frozen_module(transformers, model_class, folder).float()
    processor = loaded(folder, transformers, processor_class)
    return TextDetector(name or folder.name, model, processor, "owl" not in family, memory or PlainMemory())


class TextDetector:
    """See `ports.Detector`."""

    def __init__(self, name: str, model, processor, reads_sentences: bool, memory: Memory):
        """
        Args:
            reads_sentences: whether all phrases go in as one text, "a dog. a cat.", as in Grounding DINO.
        """
        self.name, self.model, self.processor, self.memory = name, model, processor, memory
        self.reads_sentences = reads_sentences

    @torch.inference_mode(False)
    @torch.no_grad()
    def find(self, frame: Tensor, phrases: tuple[str, ...], threshold: float) -> tuple[list[Detection], float]:
        """See `Detector`."""
        text = ". ".join(phrases) + "." if self.reads_sentences else [list(phrases)]
        picture = (frame.cpu().float() * 255).round().clamp(0, 255).byte().movedim(-1, 0)
        inputs = self.processor(images=picture, text=text, return_tensors="pt").to(self.memory.device)
        with self.memory.resident(self.model):
            outputs = self.model(**inputs)
        found = self._boxes(outputs, inputs, phrases, threshold, tuple(frame.shape[:2]))
        best = outputs.logits.float().sigmoid().max().item()
        labels = found.get("text_labels") or found["labels"]
        return [
            Detection(tuple(box), score, label if isinstance(label, str) else phrases[int(label)])
            for box, score, label in zip(found["boxes"].tolist(), found["scores"].tolist(), labels)
        ], best

    def _boxes(self, outputs, inputs, phrases, threshold: float, size: tuple[int, int]) -> dict:
        """The library's own reading of what the model says, whose arguments were renamed over time."""
        processor = self.processor
        read = getattr(processor, "post_process_grounded_object_detection", None)
        # OWL's until transformers 4.49, where labels are numbers.
        read = read or processor.image_processor.post_process_object_detection
        known = signature(read).parameters
        offered = {
            "input_ids": inputs["input_ids"],
            "threshold": threshold,
            "box_threshold": threshold,  # its name until transformers 4.50
            "text_threshold": threshold,  # a word counts as part of the label from here on
            "target_sizes": [size],
            "text_labels": [list(phrases)],
        }
        if self.reads_sentences:
            del offered["text_labels"]  # Grounding DINO's labels are the words that were matched
        if "threshold" in known:
            del offered["box_threshold"]
        return read(outputs, **{key: value for key, value in offered.items() if key in known})[0]
