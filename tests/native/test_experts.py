"""Wan 2.2's two experts: each level is one's, on the way up and down, and neither is changed."""

import pytest
import torch

from weft.backbones.comfy.loading import from_comfy
from weft.backbones.comfy.text import prompt_of
from weft.engine.call import Evaluation
from weft.engine.edit import edit
from weft.engine.inversion import invert
from weft.engine.monitor import Recording
from weft.engine.plan import PLAIN, EditPlan
from weft.engine.words import POSITIVE
from weft.methods.str_match import STRLatentOptimizer
from weft.tests.native.tiny import make

STEPS, SMOOTH = 6, 0.3


def experts():
    high, low = make("wan"), make("wan", seed=1)
    with torch.inference_mode():
        for weight in (*high.network.parameters(), *low.network.parameters()):
            weight.mul_(SMOOTH)
    return high, low


def outputs(made, backbone):
    """At every level of a schedule."""
    prompt, z = prompt_of(made.conditioning(0)), made.latents(2)
    schedule = backbone.denoiser.schedule(STEPS)
    at = [Evaluation(z[None], schedule.label(k), (prompt,), (POSITIVE,)) for k in range(1, STEPS + 1)]
    return backbone.denoiser.session([prompt], z, schedule, lambda network: [network(e, PLAIN) for e in at])


def test_each_level_is_one_experts():
    high, low = experts()
    both = from_comfy(high.patcher, high.vae, low_noise_model=low.patcher)
    alone = [outputs(high, from_comfy(expert.patcher, high.vae)) for expert in (low, high)]
    schedule = both.denoiser.schedule(STEPS)
    whose = [schedule.noise[k] >= 0.875 for k in range(1, STEPS + 1)]
    assert sorted(whose) == whose  # low noise first
    assert any(whose)
    assert not all(whose)
    for got, of_high, one, other in zip(outputs(high, both), whose, *alone):
        assert torch.equal(got, other if of_high else one)
        assert not torch.equal(one, other)


def test_there_and_back_and_an_edit_with_gradients():
    high, low = experts()
    both = from_comfy(high.patcher, high.vae, low_noise_model=low.patcher, boundary=0.8)
    latents = both.codec.unscale(high.latents(1) * 0.5)
    source, target = (prompt_of(high.conditioning(seed)) for seed in (1, 2))
    trajectory = invert(both, latents, source, steps=STEPS, evaluations=6)
    back = edit(both, trajectory, source, guidance=1.0)
    assert (back - latents).abs().max() / latents.abs().max() <= 1e-4
    log = Recording()
    plan = EditPlan((STRLatentOptimizer(strength=0.1, joint="direct", step_mode="relative"),))
    edit(both, trajectory, target, plan=plan, guidance=2.0, monitor=log)
    assert all(record["gradient"] > 0 for record in log.records)
    alone = from_comfy(high.patcher, high.vae)
    with pytest.raises(ValueError, match="inverted with another model"):
        alone.require(trajectory)


def test_what_are_no_two_experts_is_refused():
    from comfy_extras.nodes_model_advanced import ModelSamplingSD3

    wan, ltx = make("wan"), make("ltx")
    with pytest.raises(ValueError, match="no two experts of one model"):
        from_comfy(wan.patcher, wan.vae, low_noise_model=ltx.patcher)
    (shifted,) = ModelSamplingSD3().patch(wan.patcher, shift=1.0)
    with pytest.raises(ValueError, match="different shifts"):
        from_comfy(wan.patcher, wan.vae, low_noise_model=shifted)
