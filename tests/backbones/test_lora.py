"""An adapted model is a new one: the model it came from does not change, in memory or in what it gives."""

import errno
from dataclasses import replace
from functools import partial

import pytest
import torch

from weft.backbones.diffusers.loading import load_backbone
from weft.backbones.lora import adapt, keep_adapter, load_adapter, save_adapter, with_adapter
from weft.backbones.memory import PlainMemory
from weft.engine.call import Evaluation
from weft.engine.edit import edit
from weft.engine.inversion import add_noise, invert
from weft.engine.plan import PLAIN, Control, EditPlan
from weft.engine.words import NEGATIVE, POSITIVE
from weft.methods.gather_swap import GatherSwap
from weft.tests.numerics import assert_close
from weft.tests.tiny import make_latents


def evaluation(backbone):
    z = torch.stack([make_latents(2, (5, 9), seed) for seed in range(2)])
    prompts = backbone.text.embed("a red square"), backbone.text.embed("make it blue")
    return Evaluation(z, 501, prompts, (NEGATIVE, POSITIVE), image=make_latents(2, (5, 9), 9))


@torch.no_grad()
def predict(backbone, e, *controls):
    return backbone.denoiser.predict(e, EditPlan(controls))


def push(backbone, parameters):
    """A training that needs no gradients."""
    with torch.no_grad():
        for i, parameter in enumerate(parameters):
            parameter += 0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i))
    return len(parameters)


def nothing(backbone, parameters):
    return None


def weights(network):
    return {name: (id(p), p.clone()) for name, p in network.named_parameters()}


def test_a_fresh_adapter_changes_nothing_and_a_trained_one_does(tiny_instruct64):
    e = evaluation(tiny_instruct64)
    want = predict(tiny_instruct64, e)
    assert_close(predict(adapt(tiny_instruct64, nothing)[0], e), want)
    adapted, _, trained = adapt(tiny_instruct64, push, rank=2)
    assert (predict(adapted, e) - want).abs().max() > 0.01
    assert trained == 14 * 4 * 2  # attention layers, projections, low-rank factors


def test_the_model_on_the_wire_stays_as_it_is(tiny_instruct):
    e, before = evaluation(tiny_instruct), weights(tiny_instruct.denoiser.network)
    want, name, fingerprint = predict(tiny_instruct, e), tiny_instruct.name, tiny_instruct.denoiser.fingerprint
    adapted, *_ = adapt(tiny_instruct, push, rank=2)
    predict(adapted, e)
    after = weights(tiny_instruct.denoiser.network)
    assert list(after) == list(before)
    assert all(after[n][0] == before[n][0] and torch.equal(after[n][1], before[n][1]) for n in after)
    assert torch.equal(predict(tiny_instruct, e), want)
    assert (tiny_instruct.name, tiny_instruct.denoiser.fingerprint) == (name, fingerprint)


def test_both_share_their_weights_until_one_is_moved(tiny_instruct):
    adapted, *_ = adapt(tiny_instruct, push, rank=2)
    base, other = tiny_instruct.denoiser.network.conv_in.weight, adapted.denoiser.network.conv_in.weight
    assert other.data_ptr() == base.data_ptr()
    adapted.denoiser.network.to(torch.float64)
    assert base.dtype == tiny_instruct.denoiser.network.conv_in.weight.dtype == torch.float32


def test_each_model_has_a_fingerprint_of_its_own(tiny_instruct):
    seen = {tiny_instruct.denoiser.fingerprint}
    for options in ({"rank": 2}, {"rank": 3}, {"rank": 2, "seed": 1}):
        seen.add(adapt(tiny_instruct, push, **options)[0].denoiser.fingerprint)
    assert len(seen) == 4
    adapted, *_ = adapt(tiny_instruct, push, rank=2)
    assert adapted.denoiser.fingerprint in seen
    trajectory = invert(tiny_instruct, make_latents(2), tiny_instruct.text.embed(""), steps=2)
    with pytest.raises(ValueError, match="inverted with another model than 'tiny-instruct \\+ adapter'"):
        edit(adapted, trajectory, adapted.text.embed("make it blue"))


def test_an_adapted_model_edits_and_can_be_controlled(tiny_instruct):
    adapted, *_ = adapt(tiny_instruct, push, rank=2)
    trajectory = add_noise(adapted, make_latents(3), adapted.text.embed(""), steps=2)
    instruction = adapted.text.embed("make it blue")
    plain, swapped = (edit(adapted, trajectory, instruction, plan=p) for p in (PLAIN, PLAIN.then(GatherSwap(group=2))))
    assert (plain - swapped).abs().max() > 0.01
    e = evaluation(adapted)
    torch.testing.assert_close(predict(adapted, e, Through()), predict(adapted, e), rtol=1e-4, atol=1e-5)


class Through(Control):
    def attention(self, call, attend):
        return attend(call)


def test_an_adapter_is_the_same_after_it_was_saved(tiny_instruct, tmp_path):
    adapted, adapter, _ = adapt(tiny_instruct, push, rank=2, about="make it blue")
    save_adapter(adapter, tmp_path / "new" / "blue.safetensors")
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["blue.safetensors"]
    loaded = load_adapter(tmp_path / "new" / "blue.safetensors")
    assert (loaded.rank, loaded.model, loaded.about) == (2, tiny_instruct.denoiser.fingerprint, "make it blue")
    again = with_adapter(tiny_instruct, loaded)
    assert again.denoiser.fingerprint == adapted.denoiser.fingerprint
    e = evaluation(tiny_instruct)
    assert torch.equal(predict(again, e), predict(adapted, e))


def test_diffusers_reads_it_too(tiny_instruct, tmp_path):
    from copy import deepcopy

    from diffusers import StableDiffusionPipeline
    from safetensors.torch import load_file

    adapted, adapter, _ = adapt(tiny_instruct, push, rank=2)
    save_adapter(adapter, tmp_path / "blue.safetensors")
    network = deepcopy(tiny_instruct.denoiser.network)
    weights = load_file(tmp_path / "blue.safetensors")
    StableDiffusionPipeline.load_lora_into_unet(weights, network_alphas=None, unet=network)  # 0.30 has no other door
    theirs = adapted.denoiser.fingerprint, network
    e = evaluation(tiny_instruct)
    want = predict(adapted, e)
    adapted.denoiser.network = theirs[1]
    assert_close(predict(adapted, e), want)


@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt])
def test_what_was_learned_before_a_cancel_can_be_kept(tiny_instruct, failure):
    kept = []

    def half(backbone, parameters):
        push(backbone, parameters)
        raise failure

    with pytest.raises(failure):
        adapt(tiny_instruct, half, rank=2, rescue=kept.append)
    (adapter,) = kept
    assert (
        with_adapter(tiny_instruct, adapter).denoiser.fingerprint
        == adapt(tiny_instruct, push, rank=2)[0].denoiser.fingerprint
    )


def test_the_seed_decides_and_random_numbers_of_others_are_left_alone(tiny_instruct):
    torch.manual_seed(7)
    want = torch.rand(3)
    torch.manual_seed(7)
    one, other = (adapt(tiny_instruct, nothing, rank=2)[1].weights for _ in range(2))
    assert torch.equal(torch.rand(3), want)
    assert all(torch.equal(one[n], other[n]) for n in one)


def test_no_random_numbers_but_its_own_are_touched(tiny_instruct, monkeypatch):
    """Seeding all of torch would start CUDA's generator anew for everybody, which a CPU's state does not show."""
    for seeding in ("manual_seed", "seed", "set_rng_state"):
        monkeypatch.setattr(torch, seeding, lambda *_: pytest.fail("the seed of all of torch was set"))
    before = torch.get_rng_state()
    adapt(tiny_instruct, nothing, rank=2, seed=5)
    assert torch.equal(torch.get_rng_state(), before)


def test_fresh_weights_are_those_of_a_linear_layer_and_zeros(tiny_instruct):
    _, adapter, _ = adapt(tiny_instruct, nothing, rank=64)
    for name, weight in adapter.weights.items():
        if "lora_B" in name:
            assert not weight.any()
        else:
            bound = weight.shape[1] ** -0.5
            assert weight.abs().max() <= bound
            assert weight.std() == pytest.approx(bound / 3**0.5, rel=0.2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_trained_adapter_is_the_same_on_a_model_in_half_precision(tiny_instruct, tiny_instruct_folder, dtype):
    half = load_backbone(tiny_instruct_folder, dtype=str(dtype)[6:], memory=PlainMemory("cpu"))
    adapted, adapter, _ = adapt(half, push, rank=2)
    again = with_adapter(half, adapter)
    own = {n: p for n, p in again.denoiser.network.named_parameters() if "lora_" in n}
    assert all(torch.equal(p, adapter.weights[n]) for n, p in own.items())
    e = evaluation(half)
    assert torch.equal(predict(again, e), predict(adapted, e))


def test_models_of_comfyui_are_inference_tensors(tiny_instruct):
    with torch.inference_mode():
        adapted, *_ = adapt(tiny_instruct, push, rank=2)
    assert not any(p.is_inference() for p in adapted.denoiser.network.parameters())


def test_adapters_of_another_model_are_refused(tiny_instruct, tmp_path):
    adapted, adapter, _ = adapt(tiny_instruct, push, rank=2)
    with pytest.raises(ValueError, match="trained on another model than 'tiny-instruct' \\(fingerprint other, got"):
        with_adapter(tiny_instruct, replace(adapter, model="other"))
    with pytest.raises(ValueError, match="the adapter has not the layers of 'tiny-instruct': is its file whole"):
        with_adapter(tiny_instruct, replace(adapter, weights=dict(list(adapter.weights.items())[1:])))
    with pytest.raises(ValueError, match="has an adapter already: start from the model it was made from"):
        adapt(adapted, push)
    with pytest.raises(ValueError, match="want a rank of 1 or more, got 0"):
        adapt(tiny_instruct, push, rank=0)


def test_an_adapter_is_never_overwritten(tiny_instruct, tmp_path, caplog):
    _, adapter, _ = adapt(tiny_instruct, push, rank=2)
    caplog.set_level("INFO")
    for _ in range(2):
        keep_adapter(adapter, tmp_path / "blue.safetensors")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["blue.safetensors", "blue_2.safetensors"]
    assert "blue_2.safetensors" in caplog.text


def test_a_full_disk_does_not_cost_the_adapted_model(tiny_instruct, tmp_path, monkeypatch, caplog):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    keep = partial(keep_adapter, path=tmp_path / "blue.safetensors")
    adapted, adapter, _ = adapt(tiny_instruct, push, rank=2, rescue=keep)
    keep(adapter)
    assert "No space left on device" in caplog.text
    assert not list(tmp_path.iterdir())
    assert adapted.name == "tiny-instruct + adapter"


def test_an_adapter_of_another_rank_than_it_says_is_refused_before_its_layers_are_made(tiny_instruct, tmp_path):
    _, adapter, _ = adapt(tiny_instruct, push, rank=2)
    none = "not of the rank that it says|is not a whole safetensors file"  # safetensors 0.4.2 reads no empty file
    for weights, why in ((adapter.weights, "not of the rank that it says"), ({}, none)):
        path = save_adapter(replace(adapter, weights=weights, rank=10**12), tmp_path / "huge.safetensors")
        with pytest.raises(ValueError, match=why):
            load_adapter(path)


def test_files_that_are_no_adapters_are_refused(tmp_path):
    from safetensors.torch import save_file

    with pytest.raises(ValueError, match=r"no adapter 'gone\.safetensors'"):
        load_adapter(tmp_path / "gone.safetensors")
    (tmp_path / "text.safetensors").write_text("this is not safetensors")
    with pytest.raises(ValueError, match="is not a whole safetensors file"):
        load_adapter(tmp_path / "text.safetensors")
    save_file({"x": torch.ones(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="is not an adapter of Weft"):
        load_adapter(tmp_path / "other.safetensors")
