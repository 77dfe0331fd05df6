from __future__ import annotations

from typing import get_args

from comfy_api.v0_0_2 import io, ui

from ..engine.inversion import Noise
from ..methods import correspondence_attention
from ..methods.correspondence import as_pictures, cosines_as_pictures, match_frames, parse_points
from ..methods.correspondence import correspondence as find_correspondence
from . import sockets, view
from .host import NodeMonitor
from .modifiers import latents_of


class WeftCorrespondence(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="WeftCorrespondence",
            **sockets.found_by("cove", "dift", "matching", "point tracking"),
            display_name="Correspondence (Weft)",
            category="Weft/invert",
            description="COVE: finds what is where in the other frames, by the features of the model that will edit.",
            inputs=[
                sockets.Model.Input("model", tooltip="The model that will edit."),
                io.Latent.Input("latent", tooltip="The source clip, from Encode Frames: the one that is inverted."),
                io.Int.Input(
                    "timestep",
                    default=261,
                    min=0,
                    max=999,
                    tooltip="Of the noise put on the frames before the features are read: 0 is next to none.",
                ),
                io.Int.Input(
                    "window",
                    default=9,
                    min=1,
                    max=511,
                    step=2,
                    tooltip="Side of the square searched around a place in the next frame, in latent cells; odd. "
                    "Motion of more than half of it is lost.",
                ),
                io.Int.Input("top_k", default=3, min=1, max=64, tooltip="Matches of a place in another frame."),
                io.Int.Input(
                    "up_block",
                    default=2,
                    min=1,
                    max=3,
                    tooltip="Which stage of the decoder to read: 3 the last, 2 the one before (the paper's), 1 half "
                    "the resolution.",
                ),
                io.Int.Input(
                    "ensemble",
                    default=1,
                    min=1,
                    max=64,
                    tooltip="Draws of the noise whose features are averaged: more take longer and match better.",
                ),
                io.Combo.Input(
                    "noise",
                    options=list(get_args(Noise)),
                    default="shared",
                    tooltip="The same noise on all frames, or each its own.",
                ),
                sockets.seed_input("Of the noise."),
            ],
            outputs=[
                sockets.Correspondence.Output(display_name="correspondence", tooltip="To attend along, or to look at.")
            ],
        )

    @classmethod
    def execute(cls, model, latent, **numbers):
        samples = latents_of(latent)
        found = find_correspondence(model, samples, monitor=NodeMonitor(len(samples)), **numbers)
        return io.NodeOutput(found)


class WeftPreviewCorrespondence(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="WeftPreviewCorrespondence",
            **sockets.found_by("cove", "dift", "matching"),
            display_name="Preview Correspondence (Weft)",
            category="Weft/view",
            description="Shows where chosen points of one frame are in all the others.",
            inputs=[
                sockets.Correspondence.Input("correspondence", tooltip="From Correspondence."),
                io.Image.Input("images", tooltip="The source frames."),
                io.String.Input(
                    "points",
                    default="0.5 0.5",
                    tooltip='In pixels, as [{"x": 32, "y": 20}]: a click into the picture writes it. Shares of width '
                    "and height, as 0.5 0.5; 0.25 0.75, are read too.",
                ),
                io.Int.Input("frame", default=0, min=0, max=2**15, tooltip="The frame that the points are in."),
            ],
            outputs=[io.Image.Output(display_name="images", tooltip="The frames with the matches drawn in.")],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, correspondence, images, points, frame):
        pictures = match_frames(correspondence, images, parse_points(points, images.shape[1:3]), frame)
        tables = {"forward": correspondence.forward, "backward": correspondence.backward}
        numbers = {name: as_pictures(table, correspondence.grid) for name, table in tables.items()}
        if correspondence.alike is not None:
            cosines = zip(("alike_forward", "alike_backward"), correspondence.alike)
            numbers |= {name: cosines_as_pictures(table, correspondence.grid) for name, table in cosines}
        shown = view.pictures(clip=images, **numbers)
        told = view.facts(grid=correspondence.grid, top_k=correspondence.top_k)
        return io.NodeOutput(pictures, ui=view.answer(ui.PreviewImage(pictures, cls=cls), **shown, **told))


class WeftCorrespondenceAttention(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="WeftCorrespondenceAttention",
            **sockets.found_by("cove", "edit video"),
            display_name="Correspondence Attention (Weft)",
            category="Weft/plan",
            description="COVE: every place attends to its own matches in the other frames, so that they become alike.",
            inputs=[
                sockets.plan_input(),
                sockets.Correspondence.Input("correspondence", tooltip="From Correspondence, of the clip to edit."),
                io.Float.Input(
                    "merge_ratio",
                    default=0.5,
                    min=0.0,
                    max=0.95,
                    step=0.05,
                    tooltip="Share of each place's matches that is merged into similar ones. 0 is off.",
                ),
                io.Combo.Input(
                    "levels",
                    options=list(get_args(correspondence_attention.Levels)),
                    default="finest",
                    tooltip="finest: the layers of the correspondence's resolution. all: the coarser ones too.",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="0 is the plain edit. 1 replaces the layer's attention, as the paper does.",
                ),
                io.Combo.Input(
                    "tokens",
                    options=list(get_args(correspondence_attention.Tokens)),
                    default="output",
                    tooltip="What attends: the output of the layer's own attention, or its projected queries, keys and "
                    "values instead of its own attention.",
                ),
                io.Combo.Input(
                    "merging",
                    options=list(get_args(correspondence_attention.Merging)),
                    default="bipartite",
                    tooltip="bipartite matching, or pairs: means of the matches in two frames that follow each other.",
                ),
            ],
            outputs=[sockets.Plan.Output(display_name="plan", tooltip="For the next method, or the sampler.")],
        )

    @classmethod
    def execute(cls, correspondence, plan=None, **numbers):
        plan = sockets.plan_or_empty(plan)
        return io.NodeOutput(plan.then(correspondence_attention.CorrespondenceAttention(correspondence, **numbers)))
