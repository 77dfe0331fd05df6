from __future__ import annotations

from comfy_api.v0_0_2 import io

from ..engine.plan import Region
from . import sockets


class WeftRegion(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="WeftRegion",
            **sockets.found_by("regional prompt", "area", "mask prompt"),
            display_name="Region (Weft)",
            category="Weft/plan",
            description="A part of the picture with a prompt of its own: several edits in one run.",
            inputs=[
                sockets.Plan.Input(
                    "plan", optional=True, tooltip="What acts in all regions, and the regions that are there already."
                ),
                io.Conditioning.Input("positive", tooltip="Describes the clip with this region edited."),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="White is this region. Unconnected: all that no other region covers.",
                ),
                io.Conditioning.Input(
                    "negative", optional=True, tooltip="What guidance moves away from here. Unconnected: the sampler's."
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="How far this region is edited. 0 keeps the source.",
                ),
                sockets.Plan.Input("controls", optional=True, tooltip="Methods that act in this region alone."),
            ],
            outputs=[sockets.Plan.Output(display_name="plan", tooltip="For the next method, or the sampler.")],
        )

    @classmethod
    def execute(cls, positive, strength, plan=None, mask=None, negative=None, controls=None):
        region = Region(
            sockets.from_conditioning(positive),
            None if negative is None else sockets.from_conditioning(negative),
            mask,
            strength,
            sockets.controls_of(controls),
        )
        return io.NodeOutput(sockets.plan_or_empty(plan).with_region(region))
