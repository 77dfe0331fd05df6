"""What nodes of core and other packs put on a MODEL: it stays in force, steps aside with a word, or is refused."""

import pytest
import torch
from comfy.patcher_extension import WrappersMP

from weft.backbones.comfy import session
from weft.engine.plan import PLAIN, EditPlan
from weft.engine.words import POSITIVE
from weft.tests.native.test_gradients import loss_and_gradient
from weft.tests.native.test_taps import Idle, Zero, predict
from weft.tests.native.tiny import FAMILIES, Made, make

SEAMED = [name for name in FAMILIES if not name.startswith("sd") and name != "cogvideox"]


def with_wrapper(made, kind, key, wrapper):
    patcher = made.patcher.clone()
    patcher.add_wrapper_with_key(kind, key, wrapper)
    return patcher


@pytest.mark.parametrize("name", SEAMED)
def test_a_patch_of_a_block_stays_in_force(name):
    """Core's `dit` patches have one place each: another pack's runs within ours, in passes with gradients too."""
    made, called = make(name), []
    (key, *_) = [key for key, _ in _sites(made)]

    def theirs(args, extra):
        called.append(torch.is_grad_enabled())
        out = extra["original_block"](args)
        parts = out["img"] if isinstance(out["img"], tuple) else (out["img"],)
        doubled = tuple(part * 2 for part in parts)
        return {**out, "img": doubled if isinstance(out["img"], tuple) else doubled[0]}

    patcher = made.patcher.clone()
    patcher.set_model_patch_replace(theirs, "dit", *key)
    alone = predict(made, patcher=patcher)
    times = len(called)
    assert not torch.equal(alone, predict(made))
    assert torch.equal(predict(made, EditPlan((Idle(),)), patcher=patcher), alone)
    assert len(called) == 2 * times
    assert not torch.equal(loss_and_gradient(Made(made.family, patcher)), loss_and_gradient(made))
    assert called[-1]  # when a block was evaluated again


def _sites(made):
    from weft.backbones.comfy.loading import from_comfy

    return from_comfy(made.patcher, made.vae).denoiser.family._sites


def test_a_cache_that_skips_the_network_is_refused_where_methods_act():
    """As TeaCache's: our controls are not asked where its network is not run."""
    made = make("wan")

    def skipped(executor, x, *args, **kwargs):
        return torch.zeros_like(x)

    patcher = with_wrapper(made, WrappersMP.DIFFUSION_MODEL, "teacache", skipped)
    assert torch.isfinite(predict(made, patcher=patcher)).all()  # what a user wires is what runs
    with pytest.raises(ValueError, match="connect the MODEL as it was before that node"):
        predict(made, EditPlan((Idle(),)), patcher=patcher)


@pytest.mark.parametrize("node", ["EasyCacheNode", "LazyCacheNode"])
def test_cores_caches_are_off(node, caplog):
    """They take an output of one evaluation for that of another, which an edit and its source must not share."""
    from comfy_extras import nodes_easycache

    made = make("wan")
    cached = getattr(nodes_easycache, node).execute(made.patcher, 1e9, 0.0, 1.0, False).result[0]
    before = {kind: dict(named) for kind, named in cached.wrappers.items()}
    with caplog.at_level("WARNING"):
        assert torch.equal(predict(made, patcher=cached), predict(made))
    assert "cache" in caplog.text
    assert {kind: dict(named) for kind, named in cached.wrappers.items()} == before


def test_a_compiled_network_is_used_where_nothing_acts():
    made, called = make("wan"), []

    def compiled(executor, *args, **kwargs):
        called.append(1)
        return executor(*args, **kwargs)

    patcher = with_wrapper(made, WrappersMP.APPLY_MODEL, "torch.compile", compiled)
    plain = predict(made, patcher=patcher)
    assert called
    called.clear()
    assert torch.equal(predict(made, EditPlan((Idle(),)), patcher=patcher), plain)
    assert not torch.equal(predict(made, EditPlan((Zero(),)), patcher=patcher), plain)
    loss_and_gradient(Made(made.family, patcher))
    assert not called


# ---- on several GPUs rows run in threads ---------------------------------------------------------------------------


def on_several(made):
    """A MODEL whose rows core would hand to clones of it, none of which is there."""

    def sampled(executor, guider, sigmas, extra_args, *args, **kwargs):
        extra_args["model_options"]["multigpu_clones"] = {torch.device("meta"): None}
        return executor(guider, sigmas, extra_args, *args, **kwargs)

    return Made(made.family, with_wrapper(made, WrappersMP.SAMPLER_SAMPLE, "several", sampled))


def test_gradients_and_controls_stay_on_one_gpu(monkeypatch):
    from comfy import samplers

    if not hasattr(samplers, "_calc_cond_batch_multigpu"):
        pytest.skip("0.3.64 works on one GPU at a time: newer ComfyUI alone can be asked")
    made, handed = make("wan"), []
    several = on_several(made)

    def threads(model, conds, x, *args):
        handed.append(1)
        return [torch.zeros_like(x) for _ in conds]

    monkeypatch.setattr(samplers, "_calc_cond_batch_multigpu", threads)
    predict(made, PLAIN, rows=(POSITIVE,), patcher=several.patcher)
    assert handed  # a plain pass may use them all
    handed.clear()
    idle = EditPlan((Idle(),))
    assert torch.equal(predict(made, idle, patcher=several.patcher), predict(made, idle))
    assert torch.equal(loss_and_gradient(several), loss_and_gradient(made))
    assert not handed
    monkeypatch.setattr(session, "as_written", lambda options: options)
    with pytest.raises((ValueError, RuntimeError)):
        loss_and_gradient(several)
    assert handed
