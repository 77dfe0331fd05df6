"""Masks in ComfyUI. It is long because a schema says every input in words: the code is a call each."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

from comfy_api.v0_0_2 import io, ui

from ..backbones.files import found
from ..backbones.memory import ComfyMemory
from ..vision.detector import load_detector
from ..vision.find import find
from ..vision.prompts import read_frames, read_prompts, write_frames
from ..vision.sam import CHECKPOINTS, DTYPES, load_segmenter
from ..vision.segment import Choice, segment
from ..vision.show import overlays
from ..vision.track import WhenLost, track
from . import sockets, view
from .host import NodeMonitor
from .menus import chosen, roots, stamp_of

TOYS = Path(__file__).resolve().parents[1] / "toyworld" / "weights"
CONFIG = "config.json"
SAM_FOLDERS = ("sams", "sam2")
DETECTOR_FOLDERS = ("grounding-dino", "groundingdino", "owlv2")
NO_SAM = "(none found: put a SAM checkpoint into models/sams, or a SAM 2 folder into models/sam2)"
NO_DETECTOR = "(none found: put a Grounding DINO or OWLv2 folder into models/grounding-dino or models/owlv2)"


def segmenters() -> dict[str, Path]:
    """Names as the menu shows them -> checkpoints, and folders with a config.json."""

    def choose(file: Path) -> Path | None:
        if file.name == CONFIG:
            return file.parent
        return file if file.suffix in CHECKPOINTS and not file.with_name(CONFIG).exists() else None

    toys = {f"toyworld/{p.parent.name}": p for p in TOYS.glob("sam/sam.safetensors")}
    return toys | found((root for key in SAM_FOLDERS for root in roots(key)), choose)


def detectors() -> dict[str, Path]:
    toys = {f"toyworld/{p.parent.name}": p.parent for p in TOYS.glob("detector/config.json")}
    places = (root for key in DETECTOR_FOLDERS for root in roots(key))
    return toys | found(places, lambda file: file.parent if file.name == CONFIG else None)


class WeftLoadSAM(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="WeftLoadSAM",
            **sockets.found_by("segment anything", "sam2"),
            display_name="Load SAM (Weft)",
            category="Weft/mask",
            description="Loads a SAM or a SAM 2, for masks by click and for tracking them.",
            inputs=[
                io.Combo.Input(
                    "model",
                    options=list(segmenters()) or [NO_SAM],
                    tooltip="A SAM checkpoint (vit_b, vit_l, vit_h) in models/sams, a transformers folder of SAM 2 or "
                    "2.1 in models/sam2, or toyworld/sam, which knows the toy world only.",
                ),
                io.Combo.Input(
                    "dtype",
                    options=list(DTYPES),
                    default="auto",
                    tooltip="Precision of the network. auto: float32 on a CPU, half precision on a GPU.",
                ),
            ],
            outputs=[sockets.Sam.Output(display_name="sam", tooltip="For SAM Mask and Track Mask.")],
        )

    @classmethod
    def fingerprint_inputs(cls, model, dtype):
        return stamp_of(segmenters(), model)

    @classmethod
    def execute(cls, model, dtype):
        path = chosen(segmenters(), model)
        return io.NodeOutput(load_segmenter(path, name=model, dtype=dtype, memory=ComfyMemory()))


class WeftSAMMask(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="WeftSAMMask",
            **sockets.found_by("segment anything", "click mask", "points editor"),
            display_name="SAM Mask (Weft)",
            category="Weft/mask",
            description="A mask from clicks or boxes, at the frames where they are.",
            inputs=[
                sockets.Sam.Input("sam", tooltip="The model, from Load SAM."),
                io.Image.Input("images", tooltip="The clip."),
                io.String.Input(
                    "positive",
                    default="",
                    multiline=True,
                    tooltip='Points on the thing, in pixels, as [{"x": 32, "y": 20}]: clicks into the picture write '
                    "them. 'x,y; x,y' and, at frame 5, '5: x,y' are read too.",
                ),
                io.String.Input(
                    "negative",
                    default="",
                    multiline=True,
                    optional=True,
                    tooltip="Points that are not on the thing, written in the same way.",
                ),
                io.String.Input(
                    "boxes",
                    default="",
                    multiline=True,
                    optional=True,
                    tooltip="Boxes 'left,top,right,bottom' in pixels, each around a thing of its own; from Text to "
                    "Boxes, or by hand.",
                ),
                io.Int.Input(
                    "frame",
                    default=0,
                    min=0,
                    max=1_000_000,
                    optional=True,
                    tooltip="Where the points and boxes stand that name no frame. 0 is the first.",
                ),
                io.Combo.Input(
                    "choice",
                    options=list(get_args(Choice)),
                    default="best",
                    optional=True,
                    tooltip="A lone click may mean a thing or a part of it: take the mask the model likes best, the "
                    "smallest, or the largest.",
                ),
            ],
            outputs=[
                io.Mask.Output(display_name="mask", tooltip="One for each frame with a point or a box, in order."),
                io.String.Output(display_name="frames", tooltip="The numbers of those frames, for Track Mask."),
                io.Image.Output(display_name="preview", tooltip="Those frames with mask, points and boxes on them."),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, sam, images, positive, negative="", boxes="", frame=0, choice="best"):
        asked = read_prompts(positive, negative, boxes, frame)
        made = segment(sam, images, asked, choice=choice, monitor=NodeMonitor(len(asked)))
        shown = view.pictures(clip=images, masks=made.masks[..., None]) | view.facts(frames=made.frames)
        shown = view.answer(ui.PreviewImage(made.pictures, cls=cls), **shown)
        return io.NodeOutput(made.masks, write_frames(made.frames), made.pictures, ui=shown)


class WeftTextToBoxes(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="WeftTextToBoxes",
            **sockets.found_by("grounding dino", "owl", "detect"),
            display_name="Text to Boxes (Weft)",
            category="Weft/mask",
            description="Finds what a text names and puts boxes around it.",
            inputs=[
                io.Combo.Input(
                    "model",
                    options=list(detectors()) or [NO_DETECTOR],
                    tooltip="A transformers folder of Grounding DINO in models/grounding-dino, of OWLv2 in "
                    "models/owlv2, or toyworld/detector, which knows the toy world only.",
                ),
                io.Image.Input("images", tooltip="The clip."),
                io.String.Input(
                    "text",
                    default="",
                    multiline=True,
                    tooltip="What to find: 'a dog'. Several things are separated by commas.",
                ),
                io.String.Input(
                    "frames",
                    default="0",
                    optional=True,
                    tooltip="Where to look: '0', '0, 8' or 'all'. One frame is enough for Track Mask to go on from.",
                ),
                io.Float.Input(
                    "threshold",
                    default=0.25,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    optional=True,
                    tooltip="The least score of a box. Lower finds more, and more that is wrong.",
                ),
                io.Int.Input(
                    "top", default=1, min=0, max=100, optional=True, tooltip="The most boxes of a frame; 0 is all."
                ),
            ],
            outputs=[
                io.String.Output(display_name="boxes", tooltip="One line a frame, for SAM Mask."),
                io.Image.Output(display_name="preview", tooltip="The frames where something was found, with boxes."),
                io.String.Output(display_name="json", tooltip="Frame, box, score and label of each."),
            ],
            is_output_node=True,
        )

    @classmethod
    def fingerprint_inputs(cls, model, **_):
        return stamp_of(detectors(), model)

    @classmethod
    def execute(cls, model, images, text, frames="0", threshold=0.25, top=1):
        at = read_frames(frames, len(images))
        detector = load_detector(chosen(detectors(), model), name=model, memory=ComfyMemory())
        found = find(detector, images, text, at=at, threshold=threshold, top=top, monitor=NodeMonitor(len(at)))
        return io.NodeOutput(found.boxes, found.pictures, found.json, ui=ui.PreviewImage(found.pictures, cls=cls))


class WeftTrackMask(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="WeftTrackMask",
            **sockets.found_by("video segmentation", "sam2 tracking", "propagate mask"),
            display_name="Track Mask (Weft)",
            category="Weft/mask",
            description="Follows a mask from the frames where it is known through the whole clip.",
            inputs=[
                sockets.Sam.Input("sam", tooltip="The model. A SAM 2 follows by its memory, a SAM frame by frame."),
                io.Image.Input("images", tooltip="The clip."),
                io.Mask.Input("mask", tooltip="One thing's mask, at one frame or at several; from any node."),
                io.String.Input(
                    "frames",
                    default="0",
                    tooltip="The frames the masks belong to: '0', or '0, 8' for two masks. From SAM Mask, or by hand.",
                ),
                io.Float.Input(
                    "min_confidence",
                    default=0.5,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    optional=True,
                    tooltip="A frame whose confidence is lower counts as lost.",
                ),
                io.Combo.Input(
                    "when_lost",
                    options=list(get_args(WhenLost)),
                    default="hold",
                    optional=True,
                    tooltip="Lost frames: hold the last mask that was found, leave their mask empty (for a thing that "
                    "leaves the picture), or stop with an error.",
                ),
            ],
            outputs=[
                io.Mask.Output(display_name="mask", tooltip="One for each frame of the clip."),
                io.String.Output(display_name="confidence", tooltip="JSON: confidence of each frame, frames lost."),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, sam, images, mask, frames, min_confidence=0.5, when_lost="hold"):
        at = read_frames(frames, len(images))
        monitor = NodeMonitor(len(images) - len(at), lambda pictures: pictures)
        tracked = track(sam, images, mask, at=at, min_confidence=min_confidence, when_lost=when_lost, monitor=monitor)
        shown = view.answer(
            ui.PreviewMask(tracked.masks, cls=cls), **view.pictures(clip=overlays(images, tracked.masks))
        )
        return io.NodeOutput(tracked.masks, tracked.json, ui=shown)
