"""Controls on core's networks: idle they change nothing, and after a run nothing of theirs is left."""

import comfy.patcher_extension
import pytest
import torch

from weft.backbones.comfy.loading import from_comfy
from weft.backbones.comfy.text import prompt_of
from weft.engine.call import Evaluation
from weft.engine.plan import PLAIN, Control, EditPlan, Needs
from weft.engine.words import NEGATIVE, POSITIVE, SOURCE
from weft.tests.native.tiny import FAMILIES, make


class Idle(Control):
    """Looks at everything and changes nothing."""

    def needs(self):
        return Needs(source=True)

    def attention(self, call, attend):
        assert call.source.q.shape[1:] == call.q.shape[1:]
        return attend(call)

    def feature(self, features):
        return features.x


class Failing(Control):
    def attention(self, call, attend):
        raise RuntimeError("in the middle of a pass")


class Cancelled(Control):
    def attention(self, call, attend):
        from comfy.model_management import InterruptProcessingException

        raise InterruptProcessingException()


class Zero(Control):
    def attention(self, call, attend):
        return torch.zeros_like(attend(call))


@pytest.fixture(params=FAMILIES)
def made(request):
    return make(request.param)


def predict(made, plan=PLAIN, rows=(SOURCE, NEGATIVE, POSITIVE), patcher=None):
    backbone = from_comfy(patcher or made.patcher, made.vae)
    latents = torch.stack([made.latents(1 if row.of_source else 2) for row in rows])
    prompts = [prompt_of(made.conditioning(seed)) for seed in range(len(rows))]
    schedule = backbone.denoiser.schedule(4)
    evaluation = Evaluation(latents, schedule.label(3), tuple(prompts), rows)
    return backbone.denoiser.session(
        prompts, latents[0], schedule, lambda network: network(evaluation, plan), beside=made.audio
    )


def everything(patcher):
    """What a run may leave behind: weights by identity, options, hooks, wrappers of weights."""
    model = patcher.model
    parts = list(model.modules())
    return (
        [id(p) for p in model.parameters()],
        [id(m) for m in parts],
        [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in parts],
        [[len(getattr(m, f"{kind}_function", ())) for kind in ("weight", "bias")] for m in parts],
        repr(patcher.model_options),
        sorted(patcher.object_patches),
    )


def test_controls_that_change_nothing_change_nothing(made):
    plain = predict(made)
    assert plain.std() > 1e-3
    assert torch.equal(predict(made, EditPlan((Idle(),))), plain)


def test_controls_act(made):
    assert (predict(made, EditPlan((Zero(),))) - predict(made)).abs().max() > 1e-3


@pytest.mark.parametrize("ending", ["whole", "failed", "cancelled"])
def test_nothing_is_left_behind(made, ending):
    plain, before = predict(made), everything(made.patcher)
    if ending == "whole":
        predict(made, EditPlan((Idle(),)))
    else:
        control, error = (Failing(), RuntimeError) if ending == "failed" else (Cancelled(), BaseException)
        with pytest.raises(error, match="in the middle" if ending == "failed" else ""):
            predict(made, EditPlan((control,)))
    assert everything(made.patcher) == before
    assert torch.equal(predict(made), plain)


def test_another_packs_override_stays_in_force(made):
    """It is called for every attention, ours or not, and what it gives is used."""
    called = []

    def theirs(function, *args, **kwargs):
        called.append(1)
        return function(*args, **kwargs) * 2

    patcher = made.patcher.clone()
    patcher.model_options["transformer_options"]["optimized_attention_override"] = theirs
    alone = predict(made, patcher=patcher)
    times = len(called)
    assert times
    assert (alone - predict(made)).abs().max() > 1e-3
    called.clear()
    assert torch.equal(predict(made, EditPlan((Idle(),)), patcher=patcher), alone)
    assert len(called) == times


def test_another_packs_wrapper_of_the_network_stays_in_force(made):
    def doubled(executor, *args, **kwargs):
        return executor(*args, **kwargs) * 2

    patcher = made.patcher.clone()
    patcher.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.APPLY_MODEL, "other", doubled)
    alone = predict(made, patcher=patcher)
    assert not torch.equal(alone, predict(made))
    assert torch.equal(predict(made, EditPlan((Idle(),)), patcher=patcher), alone)


def test_rows_of_different_text_lengths(made):
    """Core does not batch them: every row comes in a call of its own, and gets its own output."""
    backbone = from_comfy(made.patcher, made.vae)
    prompts = [prompt_of(made.conditioning(0)), prompt_of(made.conditioning(1, longer=True))]
    latents = made.latents(2)[None].expand(2, -1, -1, -1, -1)
    schedule = backbone.denoiser.schedule(4)

    def run(network):
        at = schedule.label(3)
        both = network(Evaluation(latents, at, tuple(prompts), (NEGATIVE, POSITIVE)), EditPlan((Look(),)))
        alone = network(Evaluation(latents[:1], at, (prompts[1],), (POSITIVE,)), PLAIN)
        return both, alone

    both, alone = backbone.denoiser.session(prompts, latents[0], schedule, run, beside=made.audio)
    torch.testing.assert_close(both[1], alone[0], rtol=1e-4, atol=1e-5)
    assert (both[0] - both[1]).abs().max() > 1e-4


class Look(Control):
    def attention(self, call, attend):
        assert all(row in (NEGATIVE, POSITIVE) for row in call.rows)
        return attend(call)


class Read(Control):
    def __init__(self, calls):
        self.calls = calls

    def attention(self, call, attend):
        self.calls[call.site.layer] = call
        return attend(call)


def test_every_site_is_seen_with_its_tokens(made):
    """In the order that the sites say, all tokens of the picture at each."""
    calls, denoiser = {}, from_comfy(made.patcher, made.vae).denoiser
    predict(made, EditPlan((Read(calls),)), rows=(POSITIVE,))
    assert list(calls) == [site.layer for site in denoiser.sites]
    for site in denoiser.sites:
        call = calls[site.layer]
        frames, height, width = denoiser.grid(site, made.family.size)
        assert call.grid == (frames, height, width)
        assert call.q.shape[1] * call.q.shape[3] == frames * height * width
        joint = site.kind in ("joint", "spatial")
        assert not joint or call.k.shape[3] >= call.q.shape[3]


def test_a_changed_cell_lands_in_its_token(made):
    """Token order (t, h, w): cell (1, 2, 3) of the latent is first felt in the token that the grid says."""
    backbone = from_comfy(made.patcher, made.vae)
    calls, moved, prompt = [], made.latents(2), prompt_of(made.conditioning(0))
    moved[1, :, 2, 3] += 3
    first = backbone.denoiser.sites[0]
    for latents in (made.latents(2), moved):
        seen = {}
        schedule = backbone.denoiser.schedule(4)
        evaluation = Evaluation(latents[None], schedule.label(3), (prompt,), (POSITIVE,))
        plan = EditPlan((Read(seen),))
        backbone.denoiser.session(
            [prompt], latents, schedule, lambda network, e=evaluation, p=plan: network(e, p), beside=made.audio
        )
        calls.append(seen[first.layer])
    _, height, width = calls[0].grid
    change = (calls[0].q - calls[1].q)[0].abs().amax((1, 3)).flatten()
    scale = made.family.size[2] / height
    token = 1 * height * width + int(2 // round(scale)) * width + int(3 // round(scale))
    there = torch.tensor([token // width % height, token % width])
    felt = torch.tensor([change.argmax() // width % height, change.argmax() % width])
    # A UNet's convolutions come before its first attention, and spread it.
    assert (felt - there).abs().max() <= backbone.denoiser.framewise
    assert change.argmax() // (height * width) == 1
    assert change[token] > 1e-3
