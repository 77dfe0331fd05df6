from __future__ import annotations

from comfy_api.v0_0_2 import io, ui

from ..methods import word_view
from ..methods.words import read_words
from . import sockets, view
from .host import NodeMonitor


class WeftPreviewWords(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="WeftPreviewWords",
            **sockets.found_by("fatezero", "attention map", "cross-attention"),
            display_name="Preview Words (Weft)",
            category="Weft/view",
            description="Shows where the clip's own attention puts words of its prompt, and FateZero's mask of them.",
            inputs=[
                sockets.Model.Input("model", tooltip="The model the clip was inverted with."),
                sockets.Trajectory.Input("trajectory", tooltip="The source, from an inversion."),
                io.String.Input("words", default="", tooltip="Words of the source's prompt, as in FateZero."),
                io.Float.Input(
                    "threshold",
                    default=0.3,
                    min=0.0,
                    max=2.0,
                    step=0.01,
                    tooltip="Of the mask, as in FateZero. Its slider in the picture moves it at once.",
                ),
                io.Float.Input(
                    "noise",
                    default=0.5,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Noise level to look at: 0 almost clean, 1 the noisiest. FateZero looks at each.",
                ),
            ],
            outputs=[
                io.Mask.Output(display_name="mask", tooltip="Where FateZero would let the edit have its own way."),
                io.Image.Output(display_name="images", tooltip="The clip with that mask in red."),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, model, trajectory, words, threshold, noise):
        named = read_words(words)
        maps = word_view.word_maps(model, trajectory, named, noise=noise, monitor=NodeMonitor(len(named)))
        frames = word_view.source_pictures(model, trajectory)
        mask = word_view.words_mask(maps, frames.shape[1:3], threshold)
        painted = word_view.paint_mask(frames, mask)
        each = word_view.shares(maps).flatten(0, 1)[..., None]
        shown = view.pictures(clip=frames, together=word_view.shares(maps.sum(0)[None])[0, ..., None], each=each)
        told = view.facts(words=named, threshold=threshold)
        return io.NodeOutput(mask, painted, ui=view.answer(ui.PreviewImage(painted, cls=cls), **shown, **told))
