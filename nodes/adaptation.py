from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import folder_paths
from comfy_api.v0_0_2 import io, ui

from ..backbones import lora
from ..backbones.files import found
from ..measure import clip_direction
from ..methods import adaptation, candidates
from . import sockets
from .host import NodeMonitor
from .menus import chosen, file_for, stamp_of

NONE = "(none found: train one with Test-Time Adaptation)"
FOLDER = "loras"  # of ComfyUI's output, where its own training puts them, and of its models


def adapter_files() -> dict[str, Path]:
    """Names as the menu shows them -> files."""
    folders = [Path(folder_paths.get_output_directory(), FOLDER), *map(Path, folder_paths.get_folder_paths(FOLDER))]
    return found(folders, lambda file: file if file.suffix == ".safetensors" else None)


def keeper(name: str) -> Callable[[lora.Adapter], None]:
    """Saves an adapter under a name; without one, does nothing. ValueError for what is not a plain name."""
    if not name.strip():
        return lambda adapter: None
    return partial(lora.keep_adapter, path=file_for(name, folder=FOLDER))


class WeftEditCandidates(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="WeftEditCandidates",
            **sockets.found_by("via", "seeds", "variations"),
            display_name="Edit Candidates (Weft)",
            category="Weft/sample",
            description="Edits one frame with several seeds, for you to choose the best: the root pair of VIA.",
            inputs=[
                sockets.Model.Input("model", tooltip="An instruction model."),
                io.Image.Input("images", tooltip="The clip."),
                io.Conditioning.Input("instruction", tooltip="What to do, from Encode Prompt."),
                io.Int.Input(
                    "frame", default=0, min=0, max=2**31 - 1, tooltip="Which frame is edited; the first is 0."
                ),
                io.Int.Input("count", default=4, min=1, max=64, tooltip="How many candidates."),
                io.Int.Input("choice", default=0, min=0, max=63, tooltip="Which of them is best; the first is 0."),
                sockets.seed_input(
                    "Of the first candidate; the next has the next seed. Add Noise starts there with it."
                ),
                io.Int.Input("steps", default=10, min=1, max=1000, tooltip="Steps of each edit."),
                io.Float.Input(
                    "cfg", default=7.5, min=0.0, max=100.0, step=0.1, tooltip="How strongly to follow the instruction."
                ),
                io.Float.Input(
                    "image_cfg",
                    default=1.5,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    tooltip="How strongly to keep to the source's picture.",
                ),
                io.Conditioning.Input(
                    "negative", optional=True, tooltip="What guidance moves away from. Unconnected: no text."
                ),
                sockets.Clip.Input(
                    "clip",
                    optional=True,
                    tooltip="From Load CLIP: it takes the candidate that leads best from before to after, whatever "
                    "choice says. Unconnected: you choose.",
                ),
                io.String.Input(
                    "before",
                    default="",
                    optional=True,
                    tooltip="For clip: describes the frame as it is, as 'a red square on a gray background'.",
                ),
                io.String.Input(
                    "after", default="", optional=True, tooltip="For clip: describes it as it should be, in like words."
                ),
            ],
            outputs=[
                io.Image.Output(display_name="candidates", tooltip="All of them, one a picture."),
                io.Image.Output(display_name="edited", tooltip="The chosen one, for Test-Time Adaptation."),
                io.Image.Output(display_name="source", tooltip="The frame they are edits of."),
                io.Int.Output(display_name="seed", tooltip="Of the chosen one, for Add Noise to start there."),
                io.String.Output(display_name="scores", tooltip="What clip thinks of each, for Preview Any."),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls,
        model,
        images,
        instruction,
        frame,
        count,
        choice,
        seed,
        steps,
        cfg,
        image_cfg,
        negative=None,
        clip=None,
        before="",
        after="",
    ):
        source = candidates.choose(images, frame, "frames")
        direction = None
        if clip is None:
            candidates.require_choice(count, choice)  # before any is made
        else:
            direction = clip_direction.direction_of(clip, before, after)  # bad texts fail at once, too
        found = candidates.candidates(
            model,
            source,
            sockets.from_conditioning(instruction),
            negative=None if negative is None else sockets.from_conditioning(negative),
            count=count,
            seed=seed,
            steps=steps,
            guidance=cfg,
            image_guidance=image_cfg,
            monitor=NodeMonitor(count * steps),
        )
        told = ""
        if direction is not None:
            scores = clip_direction.scores(clip, source, found, direction)
            choice, told = clip_direction.best(scores), clip_direction.told(scores)
        edited = candidates.choose(found, choice)
        return io.NodeOutput(
            found, edited, source, candidates.seed_of(seed, choice), told, ui=ui.PreviewImage(found, cls=cls)
        )


class WeftTestTimeAdaptation(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="WeftTestTimeAdaptation",
            **sockets.found_by("via", "lora training", "fine-tune"),
            display_name="Test-Time Adaptation (Weft)",
            category="Weft/sample",
            description="Trains a small adapter on one good edit of one frame, so that the model edits all frames so.",
            inputs=[
                sockets.Model.Input("model", tooltip="An instruction model. It is not changed: a new one comes out."),
                io.Image.Input("source", lazy=True, tooltip="One frame, from Edit Candidates."),
                io.Image.Input("edited", lazy=True, tooltip="Its best edit, from Edit Candidates."),
                io.Conditioning.Input("instruction", tooltip="What was done, encoded with this model."),
                io.Int.Input("steps", default=100, min=1, max=10_000, tooltip="Training steps, one pair each."),
                io.Float.Input(
                    "rate",
                    default=1e-4,
                    min=1e-7,
                    max=1.0,
                    step=1e-5,
                    round=False,
                    tooltip="Learning rate. More learns faster and forgets what else the model knew.",
                ),
                io.Int.Input("rank", default=16, min=1, max=512, tooltip="Of the low-rank layers (LoRA) on attention."),
                io.Float.Input(
                    "drop",
                    default=0.05,
                    min=0.0,
                    max=0.33,
                    step=0.01,
                    tooltip="How often text, picture, and both are left out, each, so that guidance goes on working.",
                ),
                sockets.seed_input("Of the transforms and the noise of the training."),
                io.String.Input(
                    "save_as",
                    default="",
                    optional=True,
                    tooltip="A name to save the adapter under, also if the training is cancelled. A name that is taken "
                    "gets a number. Empty: not saved.",
                ),
            ],
            outputs=[
                sockets.Model.Output(display_name="model", tooltip="The model with the adapter."),
                io.Image.Output(display_name="loss_curve", tooltip="The loss of each training step."),
            ],
            is_output_node=True,
        )

    @classmethod
    def check_lazy_status(cls, model, instruction, steps, rate, rank, drop, source=None, edited=None, save_as="", **_):
        """Asks for the pair, whose candidates take a while, once everything else is as it should be."""
        keeper(save_as)
        lora.require_adaptable(model, rank)
        adaptation.require_teachable(model, sockets.from_conditioning(instruction), steps, rate, drop)
        return [name for name, picture in {"source": source, "edited": edited}.items() if picture is None]

    @classmethod
    def execute(cls, model, source, edited, instruction, steps, rate, rank, drop, seed, save_as=""):
        keep, prompt = keeper(save_as), sockets.from_conditioning(instruction)
        training = partial(
            adaptation.fit,
            source=source,
            edited=edited,
            instruction=prompt,
            steps=steps,
            rate=rate,
            drop=drop,
            seed=seed,
            monitor=NodeMonitor(steps),
        )
        adapted, adapter, losses = lora.adapt(model, training, rank=rank, seed=seed, about=prompt.text, rescue=keep)
        keep(adapter)
        picture = adaptation.curve(losses)
        return io.NodeOutput(adapted, picture, ui=ui.PreviewImage(picture, cls=cls))


class WeftLoadAdapter(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="WeftLoadAdapter",
            **sockets.found_by("lora", "via"),
            display_name="Load Adapter (Weft)",
            category="Weft/load",
            description="Gives a model an adapter that Test-Time Adaptation saved.",
            inputs=[
                sockets.Model.Input("model", tooltip="The very model it was trained on. It is not changed."),
                io.Combo.Input(
                    "adapter",
                    options=list(adapter_files()) or [NONE],
                    tooltip="A file in output/loras or models/loras. Press R to look again.",
                ),
            ],
            outputs=[sockets.Model.Output(display_name="model", tooltip="The model with the adapter.")],
        )

    @classmethod
    def fingerprint_inputs(cls, model, adapter):
        return stamp_of(adapter_files(), adapter)

    @classmethod
    def execute(cls, model, adapter):
        file = chosen(adapter_files(), adapter, "adapter")
        return io.NodeOutput(lora.with_adapter(model, lora.load_adapter(file)))
