from dataclasses import dataclass

import pytest
import torch

from weft.engine.attention import attend_with, read_attention
from weft.engine.call import Evaluation
from weft.engine.plan import Control
from weft.tests.tiny import make_latents


@dataclass(frozen=True)
class Affine(Control):
    """Scales the queries on the way in and shifts the result on the way out."""

    scale: float
    shift: float

    def attention(self, call, q, k, v, attend):
        return attend(self.scale * q, k, v) + self.shift


def attend(q, k, v):
    return q.square() + k * v


def test_the_first_control_is_outermost():
    q, k, v = torch.randn(3, 5, dtype=torch.float64)
    first, second = Affine(2.0, 10.0), Affine(3.0, 200.0)
    got = attend_with([first, second], None, attend)(q, k, v)
    torch.testing.assert_close(got, attend(6 * q, k, v) + 210)

    square_outside = attend_with([Square(), first], None, attend)(q, k, v)
    square_inside = attend_with([first, Square()], None, attend)(q, k, v)
    torch.testing.assert_close(square_outside, (attend(2 * q, k, v) + 10).square())
    torch.testing.assert_close(square_inside, attend(2 * q, k, v).square() + 10)


@dataclass(frozen=True)
class Square(Control):
    def attention(self, call, q, k, v, attend):
        return attend(q, k, v).square()


def test_without_controls_attention_is_untouched():
    assert attend_with([], None, attend) is attend


def evaluation(backbone, z=None, rows=1):
    z = make_latents() if z is None else z
    names = ("negative", "positive")[:rows]
    return Evaluation(torch.stack([z] * rows), 501, (backbone.text.embed("a red square"),) * rows, names)


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
        readings = read_attention(tiny, evaluation(tiny), wanted)
    finally:
        for hook in hooks:
            hook.remove()
    assert set(readings) == set(wanted)
    assert calls == [s.layer for s in tiny.denoiser.sites[:8]]  # the last one wanted is left before it attends


def test_reading_carries_gradients_to_the_latents(tiny):
    z = make_latents().requires_grad_()
    layer = tiny.denoiser.sites[-1].layer
    reading = read_attention(tiny, evaluation(tiny, z), [layer])[layer]
    (gradient,) = torch.autograd.grad(reading.q.square().sum() + reading.k.sum(), z)
    assert gradient.isfinite().all()
    assert (gradient.abs().amax((1, 2, 3)) > 0).all()
    assert reading.scale == tiny.denoiser.network.get_submodule(layer).scale


def test_a_layer_that_is_no_attention_site_is_named(tiny):
    with pytest.raises(ValueError, match=r"model 'tiny' has no attention at \['down_blocks.9.attn', 'nowhere'\]"):
        read_attention(tiny, evaluation(tiny), ["nowhere", tiny.denoiser.sites[0].layer, "down_blocks.9.attn"])
