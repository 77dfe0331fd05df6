from __future__ import annotations

from typing import get_args

from comfy_api.v0_0_2 import io

from ..methods import gather_swap
from . import sockets


class WeftGatherSwapAttention(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="WeftGatherSwapAttention",
            **sockets.found_by("via", "consistent video"),
            display_name="Gather-Swap Attention (Weft)",
            category="Weft/plan",
            description="VIA: all frames attend to the keys and values of a few frames of the edit, so they agree.",
            inputs=[
                sockets.plan_input(),
                io.Int.Input(
                    "group_size",
                    default=4,
                    min=1,
                    max=64,
                    tooltip="Frames, evenly spaced over the clip, that all others attend to. Long clips with much "
                    "motion want more; each costs memory.",
                ),
                io.Combo.Input(
                    "layers",
                    options=list(get_args(gather_swap.Layers)),
                    default="self_and_cross",
                    tooltip="Which attention is shared. cross acts only with a text per frame: with one instruction it "
                    "changes nothing.",
                ),
                io.Int.Input(
                    "adapt_steps",
                    default=0,
                    min=0,
                    max=1000,
                    tooltip="Share in the first so many steps only. 0: in all. VIA: at least in the first 8 of 10.",
                ),
                io.Float.Input(
                    "gpu_gb",
                    default=2.0,
                    min=0.0,
                    max=1024.0,
                    step=0.1,
                    tooltip="Keys and values that stay on the GPU, in GB; the rest waits in main memory.",
                ),
                io.Float.Input(
                    "budget_gb",
                    default=8.0,
                    min=0.0,
                    max=1024.0,
                    step=0.1,
                    tooltip="The most they may take in all, in GB. More is refused before the first step is over.",
                ),
                sockets.Chunk.Input(
                    "chunk", optional=True, tooltip="From Chunk Select: gather from its group instead of group_size."
                ),
            ],
            outputs=[sockets.Plan.Output(display_name="plan", tooltip="For the next method, or the sampler.")],
        )

    @classmethod
    def execute(cls, group_size, layers, adapt_steps, gpu_gb, budget_gb, plan=None, chunk=None):
        return io.NodeOutput(
            sockets.plan_or_empty(plan).then(
                gather_swap.GatherSwap(
                    group=group_size if chunk is None else chunk.group,
                    layers=layers,
                    adapt_steps=adapt_steps,
                    resident=int(gpu_gb * gather_swap.GB),
                    budget=int(budget_gb * gather_swap.GB),
                )
            )
        )
