from __future__ import annotations

from pathlib import Path

import folder_paths
from comfy_api.v0_0_2 import io

from ..backbones.files import stamp, walk
from ..engine.tensor_file import in_units
from ..methods import chunk_files, chunk_stamp
from ..methods import chunks as cut
from . import sockets
from .menus import file_for

PARTS = "weft_parts"  # of ComfyUI's output


def part_files(name: str) -> list[Path]:
    """The parts saved under a name, in the output folder or uploaded into the input folder; one of each name."""
    places = Path(folder_paths.get_output_directory(), PARTS), Path(folder_paths.get_input_directory())
    files = [file for place in places for file in walk(place) if chunk_files.is_part(file.name, name.strip())]
    return list({file.name: file for file in reversed(files)}.values())[::-1]


class WeftChunkPlan(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="WeftChunkPlan",
            **sockets.found_by("long video", "distributed"),
            display_name="Chunk Plan (Weft)",
            category="Weft/sample",
            description="Cuts a long clip for several workers that edit with gather-swap attention.",
            inputs=[
                io.Image.Input("images", tooltip="The whole clip."),
                io.Int.Input("count", default=1, min=1, max=1024, tooltip="How many workers edit a part of it."),
                io.Int.Input(
                    "group_size",
                    default=4,
                    min=1,
                    max=64,
                    tooltip="Frames, evenly spaced over the whole clip, whose keys and values every worker gathers.",
                ),
            ],
            outputs=[sockets.Chunks.Output(display_name="chunks", tooltip="For Chunk Select and Chunk Merge.")],
        )

    @classmethod
    def execute(cls, images, count, group_size):
        return io.NodeOutput(cut.plan_chunks(len(images), count, group=group_size))


class WeftChunkSelect(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="WeftChunkSelect",
            **sockets.found_by("long video", "distributed"),
            display_name="Chunk Select (Weft)",
            category="Weft/sample",
            description="The part of the clip that one worker edits, with the frames of the group.",
            inputs=[
                sockets.Chunks.Input("chunks", tooltip="From Chunk Plan."),
                io.Image.Input("images", tooltip="The whole clip."),
                io.Int.Input("index", default=0, min=0, max=1023, tooltip="Which chunk; the first is 0."),
                io.Mask.Input("mask", optional=True, tooltip="The whole clip's mask, if a blend needs one."),
            ],
            outputs=[
                io.Image.Output(display_name="images", tooltip="The frames of this part."),
                io.Mask.Output(display_name="mask", tooltip="The frames of this part."),
                sockets.Chunk.Output(display_name="chunk", tooltip="For Add Noise and Gather-Swap Attention."),
            ],
        )

    @classmethod
    def execute(cls, chunks, images, index, mask=None):
        return io.NodeOutput(*cut.select(chunks, index, images, mask))


class WeftChunkStamp(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="WeftChunkStamp",
            display_name="Chunk Stamp (Weft)",
            category="Weft/sample",
            description="Marks an edited part with its number, so that Chunk Merge can prove that all of them came.",
            **sockets.found_by("long video", "distributed"),
            inputs=[
                io.Image.Input("images", tooltip="The edited part, from Decode Frames."),
                sockets.Chunk.Input("chunk", tooltip="Which part it is, from Chunk Select."),
            ],
            outputs=[
                io.Image.Output(display_name="images", tooltip="With one frame more, for a collector or Chunk Merge.")
            ],
        )

    @classmethod
    def execute(cls, images, chunk):
        return io.NodeOutput(chunk_stamp.stamped(images, chunk))


class WeftChunkMerge(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="WeftChunkMerge",
            **sockets.found_by("long video", "distributed"),
            display_name="Chunk Merge (Weft)",
            category="Weft/sample",
            description="Puts the edited chunks together to one clip.",
            inputs=[
                sockets.Chunks.Input("chunks", tooltip="From Chunk Plan."),
                io.Image.Input("images", tooltip="All that every worker edited, one worker after another."),
                io.String.Input(
                    "order",
                    default="",
                    optional=True,
                    tooltip="Which chunk comes when, as in: 2 0 1. Empty: 0, 1, 2 and so on.",
                ),
            ],
            outputs=[io.Image.Output(display_name="images", tooltip="The whole clip.")],
        )

    @classmethod
    def execute(cls, chunks, images, order=""):
        return io.NodeOutput(chunk_stamp.merge_proven(chunks, images, cut.read_order(order)))


class WeftSavePart(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="WeftSavePart",
            **sockets.found_by("long video", "render farm", "slurm"),
            display_name="Save Part (Weft)",
            category="Weft/sample",
            description="Keeps an edited part in a file, losslessly: any scheduler can run parts, and one again.",
            inputs=[
                io.Image.Input("images", tooltip="The edited part, from Decode Frames."),
                sockets.Chunk.Input("chunk", tooltip="Which part it is, from Chunk Select."),
                io.String.Input(
                    "name",
                    default="clip",
                    tooltip="Of the files in output/weft_parts, the same for all. A part that is there is replaced.",
                ),
            ],
            outputs=[io.String.Output(display_name="file", tooltip="Its name and size.")],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, images, chunk, name):
        folder = file_for(name, folder=PARTS).parent  # refuses what is no name
        file, size = chunk_files.save_part(images, chunk, folder, name.strip())
        told = f"{file.name}, {in_units(size)}"
        named = {"filename": file.name, "subfolder": PARTS, "type": "output"}
        return io.NodeOutput(told, ui={"weft_parts": [named], "text": [told]})


class WeftLoadParts(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="WeftLoadParts",
            **sockets.found_by("long video", "render farm", "slurm"),
            display_name="Load Parts (Weft)",
            category="Weft/sample",
            description="Puts the parts that Save Part wrote together to one clip; all must be there.",
            inputs=[
                sockets.Chunks.Input("chunks", tooltip="From Chunk Plan: the plan by which the parts were made."),
                io.String.Input(
                    "name",
                    default="clip",
                    tooltip="The name given to Save Part. Files are looked for in output/weft_parts and in input.",
                ),
            ],
            outputs=[io.Image.Output(display_name="images", tooltip="The whole clip.")],
        )

    @classmethod
    def fingerprint_inputs(cls, name, **_):
        return [stamp(file) for file in part_files(name)] if isinstance(name, str) else None

    @classmethod
    def execute(cls, chunks, name):
        return io.NodeOutput(chunk_files.merge_files(chunks, part_files(name)))
