from __future__ import annotations

from comfy_api.v0_0_2 import io, ui

from ..measure import METRICS
from ..measure.metric import Clips, evaluate
from . import sockets
from .host import NodeMonitor


class WeftEvaluateEdit(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="WeftEvaluateEdit",
            **sockets.found_by("metrics", "psnr", "ssim", "clip score"),
            display_name="Evaluate Edit (Weft)",
            category="Weft/view",
            description="Figures of an edit: how close it stays to the source, how much it flickers.",
            inputs=[
                io.Image.Input("source", tooltip="The source clip."),
                io.Image.Input("edit", tooltip="The edited clip, of the same size and frame count."),
                io.Mask.Input("mask", optional=True, tooltip="What was edited: adds figures for the background alone."),
                io.Image.Input("reference", optional=True, tooltip="The wished-for edit, where one is known."),
            ],
            outputs=[
                io.String.Output(display_name="text", tooltip="The figures as a table, for Preview Any."),
                io.String.Output(display_name="json", tooltip="The figures as JSON, for scripts."),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, source, edit, mask=None, reference=None):
        figures = evaluate(Clips(source, edit, mask, reference), METRICS, NodeMonitor(len(METRICS) * len(source)))
        return io.NodeOutput(figures.text, figures.json, ui=ui.PreviewText(figures.text))
