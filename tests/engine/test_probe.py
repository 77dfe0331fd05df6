"""Looking into the network: what layers and blocks hold, without running further than that."""

from dataclasses import dataclass, field, replace
from typing import ClassVar

import pytest
import torch

from weft.engine.call import Evaluation
from weft.engine.plan import PLAIN, Control, EditPlan
from weft.engine.probe import read_calls, read_feature
from weft.engine.words import NEGATIVE, POSITIVE, SOURCE, Block
from weft.tests.numerics import assert_close
from weft.tests.tiny import make_latents


def evaluation(backbone, z=None, rows=(POSITIVE,)):
    z = make_latents() if z is None else z
    return Evaluation(torch.stack([z] * len(rows)), 501, (backbone.text.embed("a red square"),) * len(rows), rows)


def test_reading_stops_after_the_last_layer_wanted(tiny):
    calls = []
    hooks = [
        tiny.denoiser.network.get_submodule(site.layer).register_forward_hook(
            lambda *_, layer=site.layer: calls.append(layer)
        )
        for site in tiny.denoiser.sites
    ]
    try:
        wanted = [tiny.denoiser.sites[8].layer, tiny.denoiser.sites[3].layer]
        readings = read_calls(tiny.denoiser.predict, evaluation(tiny), PLAIN, POSITIVE, wanted)
    finally:
        for hook in hooks:
            hook.remove()
    assert set(readings) == set(wanted)
    assert calls == [s.layer for s in tiny.denoiser.sites[:8]]  # the last one wanted is left before it attends


def test_reading_carries_gradients_to_the_latents(tiny):
    z = make_latents().requires_grad_()
    layer = tiny.denoiser.sites[-1].layer
    reading = read_calls(tiny.denoiser.predict, evaluation(tiny, z), PLAIN, POSITIVE, [layer])[layer]
    (gradient,) = torch.autograd.grad(reading.q.square().sum() + reading.k.sum(), z)
    assert gradient.isfinite().all()
    assert (gradient.abs().amax((1, 2, 3)) > 0).all()
    assert reading.scale == tiny.denoiser.network.get_submodule(layer).scale


def test_a_layer_that_is_no_attention_site_is_named(tiny):
    wanted = ["nowhere", tiny.denoiser.sites[0].layer, "down_blocks.9.attn"]
    with pytest.raises(ValueError, match=r"the model has no attention at \['down_blocks.9.attn', 'nowhere'\]"):
        read_calls(tiny.denoiser.predict, evaluation(tiny), PLAIN, POSITIVE, wanted)


def test_a_row_that_does_not_run_reads_nothing(tiny):
    layer = tiny.denoiser.sites[0].layer
    with pytest.raises(ValueError, match=f"the model has no attention at .*{layer}"):
        read_calls(tiny.denoiser.predict, evaluation(tiny), PLAIN, SOURCE, [layer])


@dataclass(frozen=True, eq=False)
class Watch(Control):
    calls: dict = field(default_factory=dict)

    def attention(self, call, attend):
        self.calls[call.site.layer] = call
        return attend(call)


def test_what_is_read_is_the_call_of_one_row(tiny64):
    watch, rows = Watch(), (SOURCE, NEGATIVE, POSITIVE)
    e = evaluation(tiny64, rows=rows)
    e = replace(e, latents=torch.stack([make_latents(seed=seed) for seed in range(3)]))
    with torch.no_grad():
        tiny64.denoiser.predict(e, EditPlan((watch,)))
        for row in rows:
            layers = [s.layer for s in tiny64.denoiser.sites]
            calls = read_calls(tiny64.denoiser.predict, e, PLAIN, row, layers)
            assert list(calls) == layers
            for layer, call in calls.items():
                assert (call.rows, call.frames) == ((row,), (0, 1, 2))
                for name in ("q", "k", "v", "tokens"):
                    assert_close(getattr(call, name), getattr(watch.calls[layer].only(row), name))
                assert_close(call.source.q, watch.calls[layer].only(SOURCE).q)


@dataclass(frozen=True, eq=False)
class Shift(Control):
    """What is seen further in, and what comes out, are other than they were; as far out as the reader itself."""

    slot: ClassVar[str] = "inject"

    def attention(self, call, attend):
        return attend(replace(call, q=2 * call.q)) + 0.5


class Outermost(Watch):
    slot = "inject"


def test_a_look_happens_under_the_plan_and_before_any_control_of_the_layer_itself(tiny64):
    """The first layer is read as it is, for all that acts there; a later one sees what the plan did before it."""
    first, later = (tiny64.denoiser.sites[i].layer for i in (0, 5))
    e, watch = evaluation(tiny64), Watch()
    with torch.no_grad():
        tiny64.denoiser.predict(e, EditPlan((Outermost(watch.calls), Shift())))
        read = read_calls(tiny64.denoiser.predict, e, PLAIN.then(Shift()), POSITIVE, [first, later])
        plain = read_calls(tiny64.denoiser.predict, e, PLAIN, POSITIVE, [first, later])
    assert_close(read[first].q, plain[first].q)
    assert_close(read[later].q, watch.calls[later].q)
    assert (read[later].q - plain[later].q).abs().max() > 1e-2


@dataclass(frozen=True, eq=False)
class PassOfItsOwn(Control):
    """Evaluates one frame, and then the source alone, before the evaluation that is asked for."""

    def evaluate(self, evaluation, evaluate):
        evaluate(replace(evaluation.select([1]), latents=evaluation.latents[:, [1]] + 3))
        evaluate(replace(evaluation, rows=(SOURCE,), latents=evaluation.latents - 3))
        return evaluate(evaluation)


def test_passes_that_controls_make_for_themselves_are_not_what_is_read(tiny_image64):
    from weft.engine.evaluate import evaluate_with

    e, layer = evaluation(tiny_image64), tiny_image64.denoiser.sites[0].layer

    def evaluate(evaluation, plan):
        return evaluate_with(tiny_image64.denoiser.predict, evaluation, plan)

    with torch.no_grad():
        want = read_calls(evaluate, e, PLAIN, POSITIVE, [layer])[layer]
        got = read_calls(evaluate, e, PLAIN.then(PassOfItsOwn()), POSITIVE, [layer])[layer]
    assert got.frames == (0, 1, 2)
    assert_close(got.q, want.q)


@dataclass(frozen=True, eq=False)
class Negate(Control):
    block: str

    def feature(self, features):
        return -features.x if features.block.name == self.block else features.x


def test_a_block_is_read_under_the_plan_before_any_control_of_its_own_and_the_network_stops_there(tiny64):
    e, names = evaluation(tiny64, rows=(NEGATIVE, POSITIVE)), []
    blocks = [b for b in tiny64.denoiser.blocks if b.kind == "stage"]
    hook = tiny64.denoiser.network.up_blocks[2].register_forward_hook(lambda *_: names.append("up_blocks.2"))
    try:
        with torch.no_grad():
            plain, itself, before, attention = (
                read_feature(tiny64.denoiser.predict, e, EditPlan(controls), blocks[1])
                for controls in ((), (Negate("up_blocks.1"),), (Negate("up_blocks.0"),), (Shift(),))
            )
    finally:
        hook.remove()
    assert plain.shape == (2, 3, 16, 6, 10)
    assert names == []  # up_blocks.2 was never run
    assert_close(itself, plain)
    assert (before - plain).abs().max() > 1e-2
    assert (attention - plain).abs().max() > 1e-2
    with pytest.raises(ValueError, match=r"the model has no block 'up_blocks\.9'"):
        read_feature(tiny64.denoiser.predict, e, PLAIN, Block("up_blocks.9", "stage", 9, 0))
