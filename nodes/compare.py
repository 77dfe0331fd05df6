from __future__ import annotations

from comfy_api.v0_0_2 import io

from ..vision.compare import side_by_side
from . import sockets, view


class WeftCompareVideos(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="WeftCompareVideos",
            **sockets.found_by("video comparer", "before after", "side by side"),
            display_name="Compare Videos (Weft)",
            category="Weft/view",
            description="Two or three clips in step: under a movable divider, side by side, or their difference.",
            inputs=[
                io.Image.Input("a", tooltip="The first clip, as the source."),
                io.Image.Input("b", tooltip="The second, as the edit."),
                io.Image.Input("c", optional=True, tooltip="A third, for side by side."),
                io.Float.Input("fps", default=8.0, min=0.1, max=240.0, step=0.1, tooltip="Frames a second in play."),
            ],
            outputs=[
                io.Image.Output(
                    display_name="images", tooltip="The clips side by side, frame by frame, to be saved and shared."
                )
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, a, b, fps, c=None):
        clips = {name: clip for name, clip in {"a": a, "b": b, "c": c}.items() if clip is not None}
        return io.NodeOutput(side_by_side(*clips.values()), ui=view.pictures(**clips) | view.facts(fps=fps))
