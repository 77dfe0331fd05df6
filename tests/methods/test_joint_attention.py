"""Attention across space and time at once, as STR-Match reads it."""

from types import SimpleNamespace

import pytest
import torch

from weft.engine.call import Call, Run
from weft.engine.words import POSITIVE, SOURCE, Site
from weft.methods.injection import FeatureInjection
from weft.methods.joint_attention import chosen_layers, factorised, full_rows
from weft.methods.str_match import STRLatentOptimizer, paired, score_inputs, site_pairs
from weft.tests.kernels.test_str_full import literal, rows_of
from weft.tests.numerics import assert_close

FRAMES, HEIGHT, WIDTH, HEADS, TEXT = 3, 2, 4, 2, 5


def site(number, half="encoder"):
    return Site(f"blocks.{number}.self", "joint", f"blocks.{number}", 0, number, half)


def call(rows=(POSITIVE,), text=TEXT, number=0):
    places = FRAMES * HEIGHT * WIDTH
    q = torch.randn(len(rows), 1, HEADS, places, 4, dtype=torch.float64)
    k, v = (torch.randn(len(rows), 1, HEADS, places + text, 4, dtype=torch.float64) for _ in range(2))
    tokens = q.flatten(2)
    grid = (FRAMES, HEIGHT, WIDTH)
    return Call(site(number), rows, q, k, v, tuple(range(FRAMES)), grid, 0.5, tokens, tokens, lambda t: (t, t), Run())


def test_the_factors_are_softmaxes_over_one_axis():
    """D1, entry by entry: within a frame over its places, and at a place over the frames."""
    one = call()
    spatial, temporal = factorised(one)
    q, k, maps = score_inputs((spatial, temporal), per_head=True)
    places = HEIGHT * WIDTH
    for h in range(HEADS):
        for i in range(FRAMES):
            for p in range(places):
                own = one.q[0, 0, h, i * places + p]
                within = torch.stack([own @ one.k[0, 0, h, i * places + u] * 0.5 for u in range(places)]).softmax(0)
                assert_close((q[i, h, p] @ k[i, h].T * 0.5).softmax(0), within)
                along = torch.stack([own @ one.k[0, 0, h, j * places + p] * 0.5 for j in range(FRAMES)]).softmax(0)
                assert_close(maps[h, p, i], along)


def test_full_rows_are_those_of_the_full_map():
    source, target = call((SOURCE,)), call()
    want = rows_of(*(literal(c.q[0, 0], c.k[0, 0], FRAMES, 1).mean(0) for c in (source, target)))
    assert_close(full_rows(source, target, 1, False), want)


def test_which_layers_are_read():
    sites = [site(i) for i in range(12)]
    assert [s.order for s in chosen_layers(sites, every=False)] == [3, 5, 7]
    assert chosen_layers(sites, every=True) == sites
    assert chosen_layers(sites[:3], every=False) == sites[:3]
    pairs = site_pairs(SimpleNamespace(sites=sites, name="wan"), "all")
    assert pairs == [(s, s) for s in sites]
    spatial, temporal = paired(pairs[:1], {sites[0].layer: call()})[0]
    assert spatial.q.shape[:4] == (1, FRAMES, HEADS, HEIGHT * WIDTH)
    assert temporal.q.shape[:4] == (1, HEIGHT * WIDTH, HEADS, FRAMES)


def test_the_sources_map_comes_without_its_text():
    """Keys of the picture are the source's, those of the text stay with their values."""
    own, source = call(), call((SOURCE,))
    mapped = own.mapped(source)
    places = FRAMES * HEIGHT * WIDTH
    assert torch.equal(mapped.q, source.q)
    assert torch.equal(mapped.k[..., :places, :], source.k[..., :places, :])
    assert torch.equal(mapped.k[..., places:, :], own.k[..., places:, :])
    assert own.mapped(call((SOURCE,), text=TEXT + 2)).k.shape == own.k.shape


def test_injection_takes_the_second_half():
    control = FeatureInjection(1, 1)
    assert not control.injects(site(0))
    assert control.injects(site(5, "decoder"))
    model = SimpleNamespace(sites=(site(5, "decoder"),), blocks=(), name="wan")
    control.check(None, model, None)
    with pytest.raises(ValueError, match="set attention_steps"):
        FeatureInjection(1, 0).check(None, model, None)


def test_an_unknown_reading_is_refused():
    with pytest.raises(ValueError, match="no joint 'both'"):
        STRLatentOptimizer(joint="both")
