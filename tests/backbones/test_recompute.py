"""A pass with gradients that keeps no more than the borders of the UNet's layers."""

import pytest
import torch

from weft.engine.call import Evaluation
from weft.engine.edit import edit
from weft.engine.evaluate import evaluate_with
from weft.engine.inversion import invert
from weft.engine.plan import PLAIN
from weft.engine.probe import read_calls
from weft.engine.words import POSITIVE, SOURCE
from weft.methods.injection import FeatureInjection
from weft.methods.stem import STEMAttention
from weft.methods.str_match import STRLatentOptimizer
from weft.tests.numerics import assert_close
from weft.tests.tiny import make_latents

PLANS = {"plain": PLAIN, "stem": PLAIN.then(STEMAttention(bases=8)), "injection": PLAIN.then(FeatureInjection())}


def looked(backbone, plan, recompute):
    """(gradient of what the layers project, bytes that autograd kept for it)"""
    denoiser, prompt = backbone.denoiser, backbone.text.embed("a red square")
    rows = (SOURCE, POSITIVE) if plan.needs.source else (POSITIVE,)
    z = make_latents().requires_grad_()
    latents = torch.stack([make_latents(seed=1), z][-len(rows) :])
    evaluation = Evaluation(latents, 321.0, (prompt,) * len(rows), rows, recompute=recompute)
    layers = {site.layer for site in denoiser.sites if site.kind != "cross" and site.level > 0}
    kept: dict[int, int] = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        calls = read_calls(lambda e, p: evaluate_with(denoiser.predict, e, p), evaluation, plan, POSITIVE, layers)
        loss = sum((call.q * call.k.sin()).square().mean() for call in calls.values())
        weights = {p.untyped_storage().data_ptr() for p in denoiser.network.parameters()}
        size = sum(n for at, n in kept.items() if at not in weights)
    (gradient,) = torch.autograd.grad(loss, z)
    return gradient, size


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_the_gradient_is_the_same_and_less_is_kept(tiny64, plan):
    want, much = looked(tiny64, plan, recompute=False)
    got, little = looked(tiny64, plan, recompute=True)
    assert want.abs().max() > 0
    assert_close(got, want)
    assert little < much / 2


def test_str_guidance_goes_on_so_when_memory_runs_out(tiny, monkeypatch, caplog):
    trajectory = invert(tiny, make_latents(), tiny.text.embed("a red square"), steps=2)
    how = {"plan": PLAIN.then(STRLatentOptimizer(strength=0.5)), "guidance": 2.0}
    want = edit(tiny, trajectory, tiny.text.embed("a blue square"), **how)
    predict, seen = type(tiny.denoiser).predict, []

    def little_memory(self, evaluation, plan=PLAIN):
        if torch.is_grad_enabled():
            seen.append(evaluation.recompute)
            if not evaluation.recompute:
                raise torch.OutOfMemoryError("full")
        return predict(self, evaluation, plan)

    monkeypatch.setattr(type(tiny.denoiser), "predict", little_memory)
    got = edit(tiny, trajectory, tiny.text.embed("a blue square"), **how)
    assert seen == [False, True, True]
    assert "out of memory in STR Latent Optimizer" in caplog.text
    assert_close(got, want)
