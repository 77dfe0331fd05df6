"""Which layers the STR score is made of, and which models have none."""

import pytest

from weft.backbones.diffusers.loading import load_backbone
from weft.backbones.memory import PlainMemory
from weft.engine.edit import edit
from weft.engine.inversion import invert
from weft.engine.plan import PLAIN
from weft.engine.words import Site
from weft.methods.str_inputs import site_pairs
from weft.methods.str_match import STRLatentOptimizer
from weft.tests.engine.analytic import Gaussian
from weft.tests.tiny import COARSE_ONLY, make_folder


def test_spatial_sites_are_paired_with_the_first_temporal_one_of_their_block(tiny):
    coarse = [pair[0].block for pair in site_pairs(tiny.denoiser)]
    assert coarse == ["down.1.0", "mid.0.0", "up.1.0", "up.1.1"]
    pairs = site_pairs(tiny.denoiser, "all")
    assert [s.block for s, _ in pairs] == ["down.0.0", *coarse, "up.2.0", "up.2.1"]
    for spatial, temporal in pairs:
        assert (spatial.kind, temporal.kind) == ("spatial", "temporal")
        assert spatial.layer.endswith("attentions." + spatial.block[-1] + ".transformer_blocks.0.attn1")
        assert temporal.layer == spatial.layer.replace("attentions", "temp_attentions")
    assert {s.level for s, _ in site_pairs(tiny.denoiser)} == {1, 2}


def sites(*kinds, level=0):
    return tuple(Site(f"layer.{i}", kind, "block", level, i) for i, kind in enumerate(kinds))


@pytest.mark.parametrize("kinds", [(), ("spatial", "cross"), ("temporal", "temporal")])
def test_a_model_without_both_kinds_of_attention_is_refused_before_anything_runs(kinds):
    backbone = Gaussian()
    backbone.denoiser.sites = sites(*kinds, level=1)
    clip, prompt = backbone.sample(), backbone.text.embed("a dog")
    trajectory = invert(backbone, clip, prompt, steps=2)
    backbone.evaluations.clear()
    match = "'gaussian' has no spatial attention with temporal attention beside it: STR-Match wants a text-to-video"
    with pytest.raises(ValueError, match=match):
        edit(backbone, trajectory, prompt, plan=PLAIN.then(STRLatentOptimizer()))
    assert backbone.evaluations == []


def test_a_model_with_attention_at_the_finest_level_only_says_which_option_helps():
    backbone = Gaussian()
    backbone.denoiser.sites = sites("spatial", "temporal")
    with pytest.raises(ValueError, match="'gaussian' has attention at the finest level only: choose levels 'all'"):
        site_pairs(backbone.denoiser)
    assert len(site_pairs(backbone.denoiser, "all")) == 1


def test_a_model_without_finest_attention_has_the_same_pairs_either_way(tmp_path):
    backbone = load_backbone(make_folder(tmp_path / "coarse", blocks=COARSE_ONLY), memory=PlainMemory("cpu"))
    assert site_pairs(backbone.denoiser) == site_pairs(backbone.denoiser, "all")
    assert len(site_pairs(backbone.denoiser)) == 4
