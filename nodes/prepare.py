from __future__ import annotations

from typing import get_args

from comfy_api.v0_0_2 import io, ui

from ..methods import prepare
from . import sockets

GB = 2**30


class WeftPrepareClip(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="WeftPrepareClip",
            **sockets.found_by("trim", "resize video", "crop", "fps"),
            display_name="Prepare Clip (Weft)",
            category="Weft/encode",
            description="Trims a clip and makes it fit a model, and reckons what editing it takes.",
            inputs=[
                io.Image.Input("images", tooltip="The clip."),
                io.Float.Input("fps", default=24.0, min=0.1, max=240.0, step=0.1, tooltip="Its frames a second."),
                io.Int.Input("start", default=0, min=0, max=2**31 - 1, tooltip="The first frame taken."),
                io.Int.Input("frames", default=16, min=0, max=2**15, tooltip="The most that are taken. 0: all."),
                io.Int.Input("every", default=1, min=1, max=64, tooltip="Take one frame of so many: less is edited."),
                io.Int.Input("side", default=512, min=0, max=8192, tooltip="The longer side in pixels. 0: as it is."),
                io.Int.Input("multiple", default=8, min=1, max=128, tooltip="What must divide height and width."),
                io.Combo.Input(
                    "fit",
                    options=list(get_args(prepare.Way)),
                    default="crop",
                    tooltip="crop cuts the edges off, pad repeats the last pixels; with a model also the last frame.",
                ),
                io.Combo.Input(
                    "frame_rule",
                    options=list(get_args(prepare.Rule)),
                    default="any",
                    tooltip="Frame counts that the model takes: Wan and Hunyuan 4k+1, LTX 8k+1.",
                ),
                sockets.Model.Input(
                    "model",
                    optional=True,
                    tooltip="Its own multiple and frame counts are used, and the memory of an edit is reckoned.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="images", tooltip="For Encode Frames."),
                io.Float.Output(display_name="fps", tooltip="Frames a second of what was taken."),
                sockets.Fit.Output(display_name="fit", tooltip="For Restore Clip."),
                io.String.Output(display_name="report", tooltip="What was taken, and what an edit of it needs."),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, images, fps, start, frames, every, side, multiple, fit, frame_rule, model=None):
        takes = None if model is None else model.codec.takes
        numbers = {"start": start, "frames": frames, "every": every, "side": side, "multiple": multiple}
        clip, done = prepare.prepare(images, **numbers, way=fit, rule=frame_rule, takes=takes)
        (height, width), count = done.fitted, len(clip)
        report = f"{count} frames of {width}x{height}, {count / fps * every:.1f} s"
        if done.added:
            report += f", of which the last {done.added} repeat one: Restore Clip takes them away again"
        if model is not None:
            pixels, count = model.denoiser.layout.pixels, model.codec.layout.latent_frames(count)
            cells = height // pixels, width // pixels
            plain = model.denoiser.bytes(2, count, cells) / GB
            dear = plain + model.denoiser.bytes(1, count, cells, grad=True) / GB
            report += (
                f"; an edit needs about {plain:.2f} GB beside the weights ({dear:.2f} GB with STR-Match), and its time "
                f"grows with {count * cells[0] * cells[1]:,} latent cells a step"
            )
        return io.NodeOutput(clip, fps / every, done, report, ui=ui.PreviewText(report))


class WeftRestoreClip(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="WeftRestoreClip",
            **sockets.found_by("uncrop", "unpad", "paste back"),
            display_name="Restore Clip (Weft)",
            category="Weft/encode",
            description="Puts an edit back into the clip that Prepare Clip took it from, in its size.",
            inputs=[
                io.Image.Input("images", tooltip="The edit, from Decode Frames."),
                io.Image.Input("original", tooltip="The clip that went into Prepare Clip."),
                sockets.Fit.Input("fit", tooltip="From Prepare Clip."),
            ],
            outputs=[io.Image.Output(display_name="images", tooltip="What was cut off is the original's.")],
        )

    @classmethod
    def execute(cls, images, original, fit):
        return io.NodeOutput(prepare.restore(images, original, fit))
