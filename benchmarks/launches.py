"""What a step asks of a GPU beside the network's own: launches a layer of attention, and whether the host ever waits.

    python -m weft.benchmarks.launches    # prints the table of benchmarks/results/launches.md

Nothing is computed: networks live on torch's meta device, which knows shapes alone. Asking such a tensor for a number
(`item`, `cpu`, `nonzero`, `bool`) is an error, so that what runs here never waits for a GPU. The Triton launchers run
as they are, and their kernels are counted in place of being launched.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from unittest.mock import patch

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ..backbones.diffusers import parts
from ..engine.call import Evaluation, Run
from ..engine.correspondence import Correspondence
from ..engine.evaluate import evaluate_with
from ..engine.plan import PLAIN, EditPlan
from ..engine.ports import Backbone
from ..engine.probe import read_calls
from ..engine.words import NEGATIVE, POSITIVE, SOURCE, Row
from ..methods.correspondence_attention import CorrespondenceAttention
from ..methods.fate_zero import FateZero
from ..methods.gather_swap import GatherSwap
from ..methods.injection import FeatureInjection
from ..methods.spatio_temporal import SpatioTemporalAttention
from ..methods.stem import STEMAttention
from ..methods.str_inputs import paired, site_pairs
from ..methods.str_match import STRLatentOptimizer
from ..methods.token_flow import TokenFlow
from .counted import unlaunched
from .gpu.models import FULL, WORDS, Size, image_model, video_model
from .measure import Operations

META = torch.device("meta")
ROWS = (SOURCE, NEGATIVE, POSITIVE)


class _Launches(Operations):
    """Operations, and no allocations."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count -= "empty" in func._schema.name
        return super().__torch_dispatch__(func, types, args, kwargs)


class _Attention(TorchFunctionMode):
    """Attention counts as the one launch it is on a GPU, whatever it is made of elsewhere."""

    def __init__(self, seen: Operations):
        super().__init__()
        self.seen = seen

    def __torch_function__(self, func, types, args=(), kwargs=None):
        before = self.seen.count
        out = func(*args, **(kwargs or {}))
        if func is torch.nn.functional.scaled_dot_product_attention:
            self.seen.count = before + 1
        return out


@contextmanager
def counted() -> Iterator[Operations]:
    """Counts what happens inside, as if it happened on a GPU."""
    with _Launches() as seen, _Attention(seen):

        def launch() -> None:
            seen.count += 1

        with unlaunched(launch):
            yield seen


@dataclass(frozen=True)
class Count:
    """Of one step, after the first."""

    name: str
    evaluations: int
    plain: int  # launches of these evaluations without the method
    launches: int
    layers: int  # calls of attention layers in these evaluations

    @property
    def extra(self) -> float:
        """Launches of the method, a call of an attention layer."""
        return (self.launches - self.plain) / self.layers


class Stage:
    """One clip, which has nothing but a shape, on one network."""

    def __init__(self, backbone: Backbone, shape: tuple[int, ...]):
        self.backbone, self.shape = backbone, shape
        embed, text = backbone.text.embed, " ".join(WORDS)
        prompts = (embed(text), embed(""), embed(f"one {text}"))
        self.prompts = dict(zip(ROWS, prompts))
        self.predict = backbone.denoiser.predict

    def evaluation(self, rows: tuple[Row, ...], kept: dict, step: int, grad: bool = False) -> Evaluation:
        latents = torch.empty(len(rows), *self.shape, device=META, requires_grad=grad)
        return Evaluation(latents, 1, tuple(self.prompts[row] for row in rows), rows, run=Run(step, 10, kept=kept))

    def count(self, name: str, plan: EditPlan, rows: tuple[Row, ...] = ROWS[1:]) -> Count:
        rows, kept, asked = ROWS if plan.needs.source else rows, {}, []

        def predict(evaluation: Evaluation, plan: EditPlan) -> Tensor:
            asked.append(evaluation)
            return self.predict(evaluation, plan)

        with torch.no_grad():
            for step in (0, 1):
                asked.clear()
                with counted() as seen:
                    evaluate_with(predict, self.evaluation(rows, kept, step), plan)
            return self._against(name, seen.count, lambda: [self.predict(e, PLAIN) for e in asked], len(asked))

    def count_str(self, name: str, control: STRLatentOptimizer) -> Count:
        """Both reads, the loss and the gradient of a step; against the reads and the way back of no loss at all."""
        pairs = site_pairs(self.backbone.denoiser, control.levels)
        layers = frozenset(site.layer for pair in pairs for site in pair)

        def step(loss: bool) -> None:
            z = self.evaluation((POSITIVE,), {}, 1, grad=True)
            with torch.no_grad():
                source = read_calls(self.predict, self.evaluation((SOURCE,), {}, 1), PLAIN, SOURCE, layers)
            target = read_calls(self.predict, z, PLAIN, POSITIVE, layers)
            if loss:
                control.pull(control.of_source(paired(pairs, source)), paired(pairs, target), z.latents)
            else:
                ends = [x for call in target.values() for x in (call.q, call.k)]
                torch.autograd.grad(ends, z.latents, ends)

        with counted() as seen:
            step(loss=True)
        return self._against(name, seen.count, lambda: step(loss=False), 2)

    def _against(self, name: str, launches: int, again: Callable[[], object], evaluations: int) -> Count:
        with counted() as seen:
            again()
        return Count(name, evaluations, seen.count, launches, evaluations * len(self.backbone.denoiser.sites))


def found(backbone: Backbone, shape: tuple[int, ...]) -> Correspondence:
    """Of a clip in which nothing moves."""
    frames = shape[0]
    grid = tuple(backbone.denoiser.grid(backbone.denoiser.sites[0], shape)[1:])
    still = torch.arange(grid[0] * grid[1]).view(1, -1, 1).expand(frames - 1, -1, 3).int()
    return Correspondence(still, still, grid, 0, 9, backbone.denoiser.fingerprint)


def plans(size: Size, match: Correspondence) -> dict[str, EditPlan]:
    return {
        "plain edit": PLAIN,
        "Injection": PLAIN.then(FeatureInjection(10, 10)),
        "Spatio-temporal": PLAIN.then(SpatioTemporalAttention()),
        "COVE": PLAIN.then(CorrespondenceAttention(match)),
        "COVE, lists not merged": PLAIN.then(CorrespondenceAttention(match, merge_ratio=0)),
        "TokenFlow": PLAIN.then(TokenFlow(batch=min(8, size.frames // 2))),
        "FateZero": PLAIN.then(FateZero(words=(WORDS[1],))),
        "Gather-swap": PLAIN.then(GatherSwap(group=2)),
        "STEM": PLAIN.then(STEMAttention()),
    }


def on_images(size: Size, names: str = "") -> list[Count]:
    shape = size.frames, 4, *size.image
    with patch.object(parts, "fingerprint", lambda network: "meta"):  # it reads the weights
        backbone = image_model(size, META, torch.float16)
    stage = Stage(backbone, shape)
    return [stage.count(*some) for some in plans(size, found(backbone, shape)).items() if re.search(names, some[0])]


def on_video(size: Size) -> list[Count]:
    with patch.object(parts, "fingerprint", lambda network: "meta"):
        stage = Stage(video_model(size, META, torch.float16), (size.frames, 4, *size.video))
    return [stage.count_str("STR-Match", STRLatentOptimizer())]


def table(counts: list[Count]) -> str:
    lines = ["| method | evaluations | launches of these | with the method | more, a layer |", "|---|--:|--:|--:|--:|"]
    lines += [f"| {c.name} | {c.evaluations} | {c.plain} | {c.launches} | {c.extra:.1f} |" for c in counts]
    return "\n".join(lines)


if __name__ == "__main__":
    print(table([*on_images(FULL), *on_video(FULL)]))
