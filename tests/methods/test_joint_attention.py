"""Attention across space and time at once: what the source's map is, and where injection acts."""

from types import SimpleNamespace

import pytest
import torch

from weft.engine.call import Call, Run
from weft.engine.words import POSITIVE, SOURCE, Site
from weft.methods.injection import FeatureInjection
from weft.methods.str_direct import direct_rows
from weft.tests.numerics import assert_close

FRAMES, HEIGHT, WIDTH, HEADS, TEXT = 3, 2, 4, 2, 5
CLIP = FRAMES * HEIGHT * WIDTH


def site(half="encoder"):
    return Site("blocks.0.self", "joint", "blocks.0", 0, 0, half)


def call(rows=(POSITIVE,), text=TEXT, bias=None):
    q = torch.randn(len(rows), 1, HEADS, CLIP, 4, dtype=torch.float64)
    k, v = (torch.randn(len(rows), 1, HEADS, CLIP + text, 4, dtype=torch.float64) for _ in range(2))
    grid, tokens = (FRAMES, HEIGHT, WIDTH), q.flatten(2)
    frames = tuple(range(FRAMES))
    return Call(site(), rows, q, k, v, frames, grid, 0.5, tokens, tokens, lambda t: (t, t), Run(), bias=bias)


def test_the_sources_map_comes_without_its_text():
    """Keys of the clip are the source's, those of the text stay with their values, also where lengths differ."""
    own, source = call(), call((SOURCE,))
    mapped = own.mapped(source)
    assert torch.equal(mapped.q, source.q)
    assert torch.equal(mapped.k[..., -CLIP:, :], source.k[..., -CLIP:, :])
    assert torch.equal(mapped.k[..., :TEXT, :], own.k[..., :TEXT, :])
    assert own.mapped(call((SOURCE,), text=TEXT + 2)).k.shape == own.k.shape


def test_injection_takes_the_second_half():
    control = FeatureInjection(1, 1)
    assert not control.injects(site())
    assert control.injects(site("decoder"))
    model = SimpleNamespace(sites=(site("decoder"),), blocks=(), name="wan")
    control.fits(model)
    with pytest.raises(ValueError, match="set attention_steps"):
        FeatureInjection(1, 0).fits(model)


def test_a_hidden_text_is_in_no_row():
    """Keys that the layer's mask hides do not count in the full map either."""
    bias = torch.zeros(1, 1, 1, 1, CLIP + TEXT, dtype=torch.float64)
    bias[..., :TEXT] = -torch.inf
    source, target = call((SOURCE,), bias=bias), call(bias=bias)
    without = [
        Call(**{**c.__dict__, "k": c.k[..., TEXT:, :], "v": c.v[..., TEXT:, :], "bias": None}) for c in (source, target)
    ]
    assert_close(direct_rows(source, target), direct_rows(*without))
