from __future__ import annotations

from typing import get_args

from comfy_api.v0_0_2 import io

from ..methods import fate_zero
from ..methods.words import read_factors, read_words
from . import sockets


class WeftFateZero(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="WeftFateZero",
            **sockets.found_by("fatezero", "prompt-to-prompt", "p2p", "edit video"),
            display_name="FateZero (Weft)",
            category="Weft/plan",
            description="The edit attends as the source does, but for self-attention where the edited thing is.",
            inputs=[
                sockets.plan_input(),
                io.String.Input(
                    "words",
                    default="",
                    tooltip="Words of the source's prompt, the thing to edit. Empty: all self-attention is the "
                    "source's.",
                ),
                io.Float.Input(
                    "self_replace",
                    default=0.8,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Share of the run in which self-attention is the source's outside the words' mask.",
                ),
                io.Float.Input(
                    "cross_replace",
                    default=0.8,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Share of the run in which words that stay keep the source's attention.",
                ),
                io.Float.Input(
                    "threshold",
                    default=0.3,
                    min=0.0,
                    max=2.0,
                    step=0.01,
                    tooltip="Of the words' mask: lower edits more of the picture. From 1 on nothing is left to edit.",
                ),
                io.Combo.Input(
                    "mapping",
                    options=list(get_args(fate_zero.Mapping)),
                    default="refine",
                    tooltip="refine: new words keep the edit's own attention. replace: word by word, prompts of "
                    "equally many words.",
                ),
                io.String.Input(
                    "reweight",
                    default="",
                    tooltip="Words of the target's prompt with factors, as in 'blue=2, circle=1.5'.",
                ),
                io.Combo.Input(
                    "key_frames",
                    options=list(get_args(fate_zero.KeyFrames)),
                    default="previous_and_first",
                    tooltip="Frames that a frame attends to. Give the inversion the same plan, so that it does too.",
                ),
                io.Int.Input(
                    "most_tokens",
                    default=1024,
                    min=0,
                    max=2**20,
                    tooltip="Layers with more tokens a frame are left alone. 1024 as released. 0: none are.",
                ),
            ],
            outputs=[sockets.Plan.Output(display_name="plan", tooltip="For the next method, or the sampler.")],
        )

    @classmethod
    def execute(cls, words, self_replace, cross_replace, reweight, plan=None, **numbers):
        return io.NodeOutput(
            sockets.plan_or_empty(plan).then(
                fate_zero.FateZero(
                    words=read_words(words),
                    self_share=self_replace,
                    cross_share=cross_replace,
                    reweight=read_factors(reweight),
                    **numbers,
                )
            )
        )
