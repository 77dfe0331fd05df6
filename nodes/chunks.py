from __future__ import annotations

from comfy_api.v0_0_2 import io

from ..methods import chunk_stamp
from ..methods import chunks as cut
from . import sockets


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
