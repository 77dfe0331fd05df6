"""The edit of a small clip as a graph, and a runner that gives its bits."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image
from safetensors.torch import load

from weft.headless.client import Result, Server
from weft.tests.schemas import schemas

CLIP = "clip.mp4"
PLAN_AND_AFTER = {"str", "sample", "latent", "decode", "pictures"}  # what a change of a method's number may rerun


def str_match(model="tiny", clip=CLIP, steps=4, **numbers):
    """Clip in, latents and pictures out, by way of STR-Match. A node's id is what it does."""
    guidance = {"strength": 0.5, "reduction": "row_sum", "step_mode": "sgd", "neighbours": 1, "heads": "mean"}
    guidance |= {"levels": "all_but_finest", "start": 0.0, "end": 1.0, **numbers}
    return {
        "video": node("LoadVideo", file=clip),
        "frames": node("GetVideoComponents", video=["video", 0]),
        "model": node("WeftLoadModel", model=model, dtype="float32"),
        "source": node("WeftEncodePrompt", model=["model", 0], text="a red square"),
        "target": node("WeftEncodePrompt", model=["model", 0], text="a blue circle"),
        "encode": node("WeftEncodeFrames", model=["model", 0], images=["frames", 0]),
        "invert": node(
            "WeftDDIMInversion", model=["model", 0], latent=["encode", 0], source_prompt=["source", 0], steps=steps
        ),
        "str": node("WeftSTRLatentOptimizer", **guidance),
        "sample": node(
            "WeftEditSampler",
            model=["model", 0],
            trajectory=["invert", 0],
            positive=["target", 0],
            plan=["str", 0],
            cfg=2.0,
            seed=0,
        ),
        "latent": node("SaveLatent", samples=["sample", 0], filename_prefix="edit"),
        "decode": node("WeftDecodeFrames", model=["model", 0], latent=["sample", 0]),
        "pictures": node("PreviewImage", images=["decode", 0]),
    }


def plain(**options):
    """The same without any plan."""
    graph = str_match(**options)
    del graph["str"], graph["sample"]["inputs"]["plan"]
    return graph


def masked(mask, **options):
    """The same with a latent blend, whose mask is the output of the nodes given, the last one's."""
    graph = str_match(**options) | mask
    graph["blend"] = node("WeftLatentBlend", plan=["str", 0], mask=[list(mask)[-1], 0], schedule="hard", dilate=1)
    graph["sample"]["inputs"]["plan"] = ["blend", 0]
    return graph


def node(kind, **inputs):
    return {"class_type": kind, "inputs": inputs}


# What a menu no longer has: older ComfyUI leaves it to us to say so, newer refuses it before a node is asked.
GONE = ("no model 'gone'", "Value not in list (model: 'gone' not in")


def untold(failure, words):
    """Those of the words that are not in what ComfyUI says went wrong; a tuple is several ways to say one thing."""
    message = str(failure.value)
    told = [any(way in message for way in ((word,) if isinstance(word, str) else word)) for word in words]
    return [f"{word} not in: {message}" for word, there in zip(words, told) if not there]


def filled(kind, **inputs):
    """One of our nodes with the defaults that its schema says for what is not given."""
    widgets = [slot for slot in schemas()[kind].inputs if slot.is_widget and not slot.optional]
    defaults = {w.name: w.details.get("default", (w.details.get("options") or [""])[0]) for w in widgets}
    return node(kind, **defaults | inputs)


@dataclass
class Edit:
    """What one run left."""

    result: Result
    bits: bytes  # of the edited latents
    ran: set[str]  # nodes that were not answered from the cache

    def pictures(self):
        """[F, H, W, 3] uint8."""
        files = self.result.files("pictures")
        return np.stack([np.asarray(Image.open(io.BytesIO(self.result.fetch(file)))) for file in files])


@dataclass(frozen=True)
class Editor:
    """Runs the graphs above."""

    server: Server
    patience: float

    def __call__(self, graph, listen=lambda kind, data: None) -> Edit:
        result = self.server.run(graph, listen, self.patience)
        (file,) = result.files("latent")
        bits = load(result.fetch(file))["latent_tensor"].numpy().tobytes()
        return Edit(result, bits, set(graph) - result.cached)
