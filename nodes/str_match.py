from __future__ import annotations

from typing import get_args

from comfy_api.v0_0_2 import io, ui

from ..methods import str_inputs, str_match, str_view
from . import sockets, view
from .host import NodeMonitor
from .modifiers import latents_of


class WeftSTRLatentOptimizer(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="WeftSTRLatentOptimizer",
            **sockets.found_by("str-match", "str match", "spatiotemporal relevance", "edit video"),
            display_name="STR Latent Optimizer (Weft)",
            category="Weft/plan",
            description="STR-Match: before each step, pulls the edit's layout and motion towards the source's.",
            inputs=[
                sockets.plan_input(),
                io.Float.Input(
                    "strength",
                    default=str_match.PAPER_STRENGTH,
                    min=0.0,
                    max=10000.0,
                    step=0.001,
                    round=0.0001,
                    tooltip="0 is the plain edit. More keeps layout and motion better, too much edits less. The "
                    "paper: 0.005 to 0.015 for LaVie; toyworld/video: see its workflow.",
                ),
                io.Combo.Input(
                    "reduction",
                    options=list(get_args(str_match.Reduction)),
                    default="row_sum",
                    tooltip="What one cosine spans: a token's row (all are added), a frame, a layer, everything. All "
                    "but row_sum have tiny gradients: use them with step_mode relative.",
                ),
                io.Combo.Input(
                    "step_mode",
                    options=list(get_args(str_match.StepMode)),
                    default="sgd",
                    tooltip="sgd: strength times the gradient, as in the paper. relative: a step of known length, "
                    "0.2 % of the latent at strength 0.01.",
                ),
                io.Int.Input(
                    "neighbours",
                    default=1,
                    min=1,
                    max=16,
                    tooltip="Frames on each side that a frame is related to.",
                ),
                io.Combo.Input(
                    "heads",
                    options=list(get_args(str_match.Heads)),
                    default="mean",
                    tooltip="Scores on attention maps averaged over heads, or head by head (slower, stronger).",
                ),
                io.Combo.Input(
                    "levels",
                    options=list(get_args(str_inputs.Levels)),
                    default="all_but_finest",
                    tooltip="Attention resolutions to match. The paper leaves the finest out.",
                ),
                io.Float.Input(
                    "start", default=0.0, min=0.0, max=1.0, step=0.01, tooltip="Share of the run before it begins."
                ),
                io.Float.Input(
                    "end", default=1.0, min=0.0, max=1.0, step=0.01, tooltip="Share of the run after which it stops."
                ),
                io.Combo.Input(
                    "source_score",
                    options=list(get_args(str_match.SourceScore)),
                    default="recompute",
                    optional=True,
                    tooltip="recompute the source's score at the edit's noise level, or read it one level cleaner, "
                    "as the paper's inversion stores it.",
                ),
                io.Combo.Input(
                    "score",
                    options=list(get_args(str_match.Score)),
                    default="str",
                    optional=True,
                    tooltip="str, or the paper's baseline: squared distance of the attention maps (strength 0.08).",
                ),
                io.Combo.Input(
                    "joint",
                    options=list(get_args(str_match.Joint)),
                    default="factorised",
                    optional=True,
                    tooltip="For models that attend over the whole clip at once (CogVideoX): maps in space and in "
                    "time, or that attention as it is (slower). Others ignore it.",
                ),
            ],
            outputs=[sockets.Plan.Output(display_name="plan", tooltip="For the next method, or the sampler.")],
        )

    @classmethod
    def execute(cls, plan=None, **numbers):
        return io.NodeOutput(sockets.plan_or_empty(plan).then(str_match.STRLatentOptimizer(**numbers)))


class WeftPreviewSTRScore(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="WeftPreviewSTRScore",
            **sockets.found_by("str-match", "relevance"),
            display_name="Preview STR Score (Weft)",
            category="Weft/view",
            description="Shows what one point of the source is related to, frame by frame.",
            inputs=[
                sockets.Model.Input("model", tooltip="The model the clip was inverted with."),
                sockets.Trajectory.Input("trajectory", lazy=True, tooltip="The source, from an inversion."),
                io.Float.Input("x", default=0.5, min=0.0, max=1.0, step=0.01, tooltip="The point: 0 left, 1 right."),
                io.Float.Input("y", default=0.5, min=0.0, max=1.0, step=0.01, tooltip="The point: 0 top, 1 bottom."),
                io.Float.Input(
                    "noise",
                    default=0.25,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Noise level to look at: 0 almost clean, 1 the noisiest.",
                ),
                io.Int.Input("neighbours", default=1, min=1, max=16, tooltip="As in STR Latent Optimizer."),
                io.Combo.Input(
                    "levels",
                    options=list(get_args(str_inputs.Levels)),
                    default="all_but_finest",
                    tooltip="As in STR Latent Optimizer.",
                ),
                io.Latent.Input(
                    "edit",
                    optional=True,
                    tooltip="The edit, from Edit Sampler: its score is shown beside the source's, in the source's own "
                    "noise. Wants edit_prompt.",
                ),
                io.Conditioning.Input("edit_prompt", optional=True, tooltip="Describes the edit."),
            ],
            outputs=[io.Image.Output(display_name="images", tooltip="The source in gray, with the score in color.")],
            is_output_node=True,
        )

    @classmethod
    def check_lazy_status(cls, model, levels, trajectory=None, edit=None, edit_prompt=None, **_):
        """Asks for the trajectory once the model is known to have the attention."""
        if (edit is None) != (edit_prompt is None):
            raise ValueError(
                "connect both edit and edit_prompt, or neither: the edit is looked at under its own prompt"
            )
        str_inputs.site_pairs(model.denoiser, levels)
        return [] if trajectory is not None else ["trajectory"]

    @classmethod
    def execute(cls, model, trajectory, x, y, noise, neighbours, levels, edit=None, edit_prompt=None):
        told = None if edit is None else (latents_of(edit), sockets.from_conditioning(edit_prompt))
        how = {"noise": noise, "neighbours": neighbours, "levels": levels, "edit": told}
        seen = str_view.look(model, trajectory, (x, y), **how, monitor=NodeMonitor(1))
        shown = view.pictures(**seen.clips, heat=seen.heat[..., None])
        facts = view.facts(
            levels=seen.levels,
            resolutions=seen.resolutions,
            first=seen.first,
            steps=trajectory.schedule.steps,
            x=x,
            y=y,
        )
        return io.NodeOutput(seen.painted, ui=view.answer(ui.PreviewImage(seen.painted, cls=cls), **shown, **facts))
