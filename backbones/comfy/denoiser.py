"""A MODEL of ComfyUI's as a `Denoiser`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import cached_property, partial
from typing import TypeVar

import comfy.conds
import comfy.model_base
import torch
from torch import Tensor

from ...engine.call import Evaluation
from ...engine.plan import EditPlan
from ...engine.ports import Predict
from ...engine.schedule import Schedule
from ...engine.words import Block, Layout, Prompt, Row, Site
from .autograd import differentiable
from .families import Family, family_of
from .fingerprint import fingerprint, weights_of
from .passes import Kept, Pass
from .sampling import Sampling
from .session import Conditioning, Inside, free_memory, run_inside
from .text import conditioning_of, identity

T = TypeVar("T")
GRADIENT_WORTH = 8  # a pass with gradients keeps what a pass without drops; modelled, not measured
FIRST: tuple[str, ...] = ("source", "positive", "source_negative", "negative", "unconditional")  # core counts them so
PLACED = ("area", "mask", "control", "gligen")  # what a conditioning may hold that is for the whole clip alone


class ComfyDenoiser:
    """See `Denoiser`."""

    def __init__(self, name: str, patcher, layout: Layout, sampling: Sampling):
        self.name, self.patcher, self.layout, self.sampling = name, patcher, layout, sampling
        self.model = patcher.model
        self.video = self.model.latent_format.latent_dimensions == 3
        self.family: Family = family_of(self.model.diffusion_model, not self.video)
        self.sees_source = isinstance(self.model, comfy.model_base.IP2P)

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint(type(self.model).__name__, weights_of(self.patcher))

    @property
    def device(self) -> torch.device:
        return self.patcher.load_device

    @property
    def framewise(self) -> bool:
        return self.family.framewise

    @property
    def sites(self) -> tuple[Site, ...]:
        return self.family.sites

    @property
    def blocks(self) -> tuple[Block, ...]:
        return self.family.blocks

    def grid(self, place: Site | Block, shape: Sequence[int]) -> tuple[int, int, int]:
        return self.family.grid(place, shape)

    def bytes(self, rows: int, frames: int, size: tuple[int, int], grad: bool = False) -> int:
        """By core's own formula for the class of the model."""
        shape = [rows, 1, frames, *size] if self.video else [rows * frames, 1, *size]
        return int(self.model.memory_required(shape)) * (GRADIENT_WORTH if grad else 1)

    def free(self) -> int | None:
        return free_memory(self.device)

    def schedule(self, steps: int) -> Schedule:
        return self.sampling.schedule(steps)

    # ---- forms of a latent ------------------------------------------------------------------------------------------

    def native(self, latents: Tensor) -> Tensor:
        """The engine's [F, C, h, w] -> the network's batch: [F, C, h, w], or [1, C, F, h, w]."""
        return latents.movedim(0, 1)[None] if self.video else latents

    def engine(self, x: Tensor) -> Tensor:
        """`native` backwards."""
        return x[0].movedim(1, 0) if self.video else x

    # ---- evaluation -------------------------------------------------------------------------------------------------

    def session(
        self,
        prompts: Sequence[Prompt],
        latents: Tensor,
        schedule: Schedule,
        body: Callable[[Predict], T],
        *,
        reserve: int = 0,
        beside: Tensor | None = None,
    ) -> T:
        return self.inside(prompts, latents, schedule, lambda network: body(network.predict), reserve, beside)

    def inside(
        self,
        prompts: Sequence[Prompt],
        latents: Tensor,
        schedule: Schedule,
        body: Callable[[Network], T],
        reserve: int,
        beside: Tensor | None,
    ) -> T:
        """See `session`; `body` is given the network itself."""
        self._require_audio(beside)
        named = {f"{identity(p)}": conditioning_of(p) for p in prompts}
        wire = self.model.process_latent_out(self.native(latents).float())
        sigmas = [*(self.sampling.sigma(schedule.label(k)) for k in range(schedule.steps, 0, -1)), 0.0]

        def inside(there: Inside) -> T:
            return body(Network(self, there, len(latents)))

        try:
            return run_inside(self.patcher, named, wire, torch.tensor(sigmas), inside, reserve, beside)
        except KeyError as error:
            if error.args != ("pooled_output",):
                raise
            raise ValueError(
                f"'{self.name}' also reads a text as a whole (pooled_output), and a prompt here has none: encode it "
                "with this model's own CLIP, by Encode Prompt or CLIP Text Encode"
            ) from error

    def _require_audio(self, beside: Tensor | None) -> None:
        """ValueError where the latents lack audio that the network must have, or have some that it does not know."""
        if beside is None and self.family.audio == "must":
            raise ValueError(
                f"'{self.name}' makes audio with its video, and these latents have none: encode the clip's audio with "
                "its audio VAE, and join both with ComfyUI's own node"
            )
        if beside is not None and self.family.audio == "none":
            raise ValueError(f"'{self.name}' edits video alone, and these latents hold audio too: separate them first")


class Network:
    """The network inside one sampling run."""

    def __init__(self, denoiser: ComfyDenoiser, there: Inside, frames: int):
        self.denoiser, self.there, self.frames = denoiser, there, frames
        for entry in (entry for some in there.encoded.values() for entry in some):
            _require_as_long(entry, frames)
        # Of what is around the network: its output is x - x0 over a sigma that may be small.
        self.precision = torch.float32 if denoiser.device.type == "mps" else torch.float64

    def predict(self, evaluation: Evaluation, plan: EditPlan) -> Tensor:
        """See `Predict`. The source's rows first, in a pass of their own: see `passes.py`."""
        kept, outputs = Kept(), {}
        for of_source in (True, False):
            rows = [row for row in evaluation.rows if row.of_source is of_source]
            if rows:
                rows = tuple(sorted(rows, key=lambda row: (row.region, FIRST.index(row.role))))
                outputs |= zip(rows, self._pass(evaluation, plan, rows, kept))
        return torch.stack([outputs[row] for row in evaluation.rows])

    def _pass(self, evaluation: Evaluation, plan: EditPlan, rows: tuple[Row, ...], kept: Kept) -> list[Tensor]:
        """The network's own output [F, C, h, w] for each row; all of them have the same latents."""
        denoiser, sampling = self.denoiser, self.denoiser.sampling
        z = evaluation.latents[evaluation.rows.index(rows[0])].to(denoiser.device, self.precision)
        sigma = sampling.sigma(evaluation.label)
        x = denoiser.native(sampling.noisy(z, sigma))
        conditionings = [self._encoded(evaluation, row) for row in rows]
        scope = partial(differentiable, denoiser.model, denoiser.device)
        with ExitStack() as stack:
            if rows[0].of_source:
                stack.enter_context(torch.no_grad())
            graph = torch.is_grad_enabled()
            apart = graph and not denoiser.framewise
            grid = partial(denoiser.grid, shape=evaluation.latents.shape)
            one = Pass(evaluation, plan, rows, kept, grid, scope, apart=apart)
            if graph:
                stack.enter_context(scope())
            options = self.there.options.get("transformer_options", {})
            acting = denoiser.sites and (plan.acting_at("attention") or plan.acting_at("feature"))
            if acting:
                options = stack.enter_context(denoiser.family.tapped(options, one))
            how = {"one_row": denoiser.family.one_row, "ours": bool(graph or acting)}
            clean = self.there.clean(conditionings, x, sigma, options, one.turn, **how)
        return [sampling.output(z, denoiser.engine(x0), sigma).float() for x0 in clean]

    def _encoded(self, evaluation: Evaluation, row: Row) -> Conditioning:
        """What core made of a row's prompt, for these frames, with the source's picture where the network sees it."""
        encoded = self.there.encoded[f"{identity(evaluation.prompt(row))}"]
        if self.denoiser.framewise and len(evaluation.frames) < self.frames:
            encoded = [_of_frames(entry, evaluation.frames, self.frames) for entry in encoded]
        if self.denoiser.sees_source:
            encoded = [self._with_picture(entry, evaluation, row) for entry in encoded]
        return encoded

    def _with_picture(self, entry: dict, evaluation: Evaluation, row: Row) -> dict:
        """The source's clean latents as the network is given them, or the conditioning's own; none in one row."""
        if "concat_latent_image" in entry:
            picture = entry["model_conds"]["c_concat"].cond
        else:
            if evaluation.image is None:
                raise ValueError(
                    f"'{self.denoiser.name}' is given the source's picture at every evaluation, and there is none"
                )
            model = self.denoiser.model
            wire = model.process_latent_out(self.denoiser.native(evaluation.image.float()))
            picture = model.process_ip2p_image_in(wire).to(self.denoiser.device)
        picture = picture * (row.role != "unconditional")
        return {**entry, "model_conds": {**entry["model_conds"], "c_concat": comfy.conds.CONDNoiseShape(picture)}}


def _require_as_long(entry: dict, frames: int) -> None:
    """ValueError where what a conditioning lays beside the latents has another number of frames."""
    beside = entry.get("model_conds", {}).get("c_concat")
    if beside is not None and beside.cond.ndim == 5 and beside.cond.shape[2] != frames:
        raise ValueError(
            f"a prompt lays a picture of {beside.cond.shape[2]} latent frames beside the clip, which has {frames}: "
            "make both of the same length, with any frame of reference that the prompt's node puts before it"
        )


def _of_frames(entry: dict, frames: Sequence[int], count: int) -> dict:
    """An encoded conditioning for some frames of the clip; what is one for all of them stays.

    Raises:
        ValueError: it holds what is laid out for the whole clip.
    """
    if placed := [key for key in PLACED if entry.get(key) is not None]:
        raise ValueError(
            f"a conditioning with {' and '.join(placed)} is for the whole clip, and these are some frames of it: set "
            "chunk_frames to 0, and use no method that evaluates frames of its choice"
        )
    made = {}
    for name, value in entry["model_conds"].items():
        whole = isinstance(value.cond, Tensor) and value.cond.ndim and len(value.cond) == count
        made[name] = value._copy_with(value.cond[list(frames)]) if whole else value
    return {**entry, "model_conds": made}
