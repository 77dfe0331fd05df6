"""Gradients of what STR-Match reads, queries and keys, with respect to the latent; and each scope that they need."""

from contextlib import nullcontext

import comfy.model_management as management
import pytest
import torch

from weft.backbones.comfy import autograd, dit, passes, recompute
from weft.backbones.comfy.loading import from_comfy
from weft.backbones.comfy.text import prompt_of
from weft.engine.call import Evaluation
from weft.engine.evaluate import evaluate_with
from weft.engine.plan import PLAIN, Control, EditPlan, Needs
from weft.engine.probe import read_calls
from weft.engine.words import POSITIVE, SOURCE
from weft.tests.native.tiny import FAMILIES, VIDEO, make

STEP = 2e-3  # of finite differences, in float32
BY_DIFFERENCES = 2e-3  # share of the slope
SAME_DIRECTION = 0.998  # cosine of a gradient in low precision with that in float32


def loss_and_gradient(made, layers=None, plan=PLAIN, way=None, rows=(POSITIVE,)):
    """The loss on the calls at some layers, and its gradient; with `way`, the slope along it by differences."""
    backbone = from_comfy(made.patcher, made.vae)
    prompts = [prompt_of(made.conditioning(seed)) for seed in range(len(rows))]
    schedule = backbone.denoiser.schedule(4)
    layers = layers or {site.layer for site in backbone.denoiser.sites if site.kind in ("spatial", "joint")}

    def loss(network, z):
        latents = torch.stack([z if row == POSITIVE else made.latents(5) for row in rows])
        evaluation = Evaluation(latents, schedule.label(3), tuple(prompts), rows)
        read = read_calls(lambda e, p: evaluate_with(network, e, p), evaluation, plan, POSITIVE, layers)
        return sum((c.q.float() * c.k.float()[..., -c.q.shape[3] :, :]).mean() for c in read.values())

    def body(network):
        z = made.latents(2)
        if way is not None:
            return (loss(network, z + STEP * way) - loss(network, z - STEP * way)).item() / (2 * STEP)
        with torch.enable_grad():
            z.requires_grad_()
            return torch.autograd.grad(loss(network, z), z)[0]

    return backbone.denoiser.session(prompts, made.latents(2), schedule, body, beside=made.audio)


def assert_by_differences(made, **options):
    gradient = loss_and_gradient(made, **options)
    way = gradient / gradient.norm()
    slope = loss_and_gradient(made, way=way, **options)
    assert slope > 0
    assert abs((gradient * way).sum().item() - slope) <= BY_DIFFERENCES * slope


def cosine(a, b):
    return torch.nn.functional.cosine_similarity(a.flatten(), b.flatten(), 0).item()


@pytest.fixture(params=FAMILIES)
def made(request):
    return make(request.param)


def test_gradients_agree_with_finite_differences(made):
    assert_by_differences(made)


class Louder(Control):
    """Changes what comes after it, so that it must act again when a block is evaluated again."""

    def attention(self, call, attend):
        return 2 * attend(call)


class FromSource(Control):
    slot = "inject"

    def needs(self):
        return Needs(source=True)

    def attention(self, call, attend):
        return attend(call.mapped(call.source)) if POSITIVE in call.rows else attend(call)


@pytest.mark.parametrize("control", [Louder(), FromSource()], ids=["louder", "from the source"])
def test_gradients_under_a_plan(made, control):
    assert_by_differences(made, plan=EditPlan((control,)), rows=(SOURCE, POSITIVE))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn])
def test_gradients_through_small_weights(made, dtype):
    name = next(name for name, family in FAMILIES.items() if family is made.family)
    small = make(name, dtype, torch.float32)
    with torch.inference_mode():  # the same weights, as rounded
        for one, other in zip(made.network.parameters(), small.network.parameters()):
            one.data = other.data.float()
    assert cosine(loss_and_gradient(small), loss_and_gradient(made)) >= SAME_DIRECTION


def test_weights_are_as_before(made):
    before = {name: id(tensor) for name, tensor in made.network.state_dict(keep_vars=True).items()}
    loss_and_gradient(made)
    after = {name: id(tensor) for name, tensor in made.network.state_dict(keep_vars=True).items()}
    assert before == after
    assert not getattr(management, "in_training", False)


# ---- every scope is needed ------------------------------------------------------------------------------------------


def test_without_aliases_of_weights_it_fails(made, monkeypatch):
    monkeypatch.setattr(autograd, "ordinary_weights", nullcontext)
    with pytest.raises(RuntimeError, match=r"[Ii]nference"):
        loss_and_gradient(made)


@pytest.mark.parametrize("name", [name for name in VIDEO if name != "cogvideox"])  # core has no seam there
def test_without_a_frozen_closure_it_is_wrong(name, monkeypatch):
    made = make(name)
    right = loss_and_gradient(made)
    monkeypatch.setattr(dit, "frozen", lambda function: function)
    try:
        wrong = loss_and_gradient(made)
    except (RuntimeError, KeyError, ValueError, TypeError):
        return  # HunyuanVideo's last block is of another kind
    assert cosine(wrong, right) < SAME_DIRECTION


@pytest.mark.parametrize("name", ["ltx", "hunyuan"])
def test_without_room_for_changes_in_place_it_fails(name, monkeypatch):
    made = make(name)
    monkeypatch.setattr(recompute, "allow_mutation_on_saved_tensors", nullcontext)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss_and_gradient(made)


@pytest.mark.parametrize("name", ["wan", "hunyuan"])
def test_without_plain_kernels_newer_core_fails(name, monkeypatch):
    if not hasattr(management, "in_training"):
        pytest.skip("this ComfyUI has no kernels without a backward")
    made = make(name)
    monkeypatch.setattr(autograd, "PlainKernels", nullcontext)
    monkeypatch.setattr(autograd, "_set", lambda *args: nullcontext())
    with pytest.raises(RuntimeError, match="autograd"):
        loss_and_gradient(made)


def test_a_function_without_a_backward_is_not_used(made, monkeypatch):
    """As sage attention: right in passes without gradients, and of no use in those with."""
    right = loss_and_gradient(made)

    def theirs(function, *args, **kwargs):
        return function(*args, **kwargs)

    monkeypatch.setitem(made.patcher.model_options["transformer_options"], "optimized_attention_override", theirs)
    assert torch.equal(loss_and_gradient(made), right)
    ours = passes.attention_pytorch
    monkeypatch.setattr(passes, "attention_pytorch", lambda *args, **kwargs: ours(*args, **kwargs) / 2)
    assert not torch.equal(loss_and_gradient(made), right)


class Streamed(torch.nn.Module):
    """Layers whose weights come through one buffer, as core's offload streams do it."""

    def __init__(self):
        super().__init__()
        self.layers = torch.nn.ModuleList(_Layer() for _ in range(3))
        with torch.inference_mode():
            self.buffer = torch.empty(8, 8)

    def forward(self, x):
        for layer in self.layers:
            x = layer(x, self.buffer).sin()
        return x


class _Layer(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(8, 8), False)
        self.weight_function, self.bias_function = [], []

    def forward(self, x, buffer):
        with torch.inference_mode():
            buffer.copy_(self.weight)
        weight = buffer
        for function in self.weight_function:
            weight = function(weight)
        return torch.nn.functional.linear(x, weight)


@pytest.mark.parametrize("cloned", [True, False])
def test_streamed_weights_are_cloned(cloned, monkeypatch):
    """Without it the buffer's last content is taken for every layer's: without a word, or with an error."""
    network, x = Streamed(), torch.randn(4, 8)
    elsewhere = torch.device("meta")  # where the weights are not
    if not cloned:
        monkeypatch.setattr(autograd, "cloned_streams", lambda *args: nullcontext())

    def gradient(run):
        z = x.clone().requires_grad_()
        return torch.autograd.grad(run(z).sum(), z)[0]

    def plain(z):
        for layer in network.layers:
            z = torch.nn.functional.linear(z, layer.weight).sin()
        return z

    right = gradient(plain)
    try:
        with autograd.differentiable(network, elsewhere), torch.enable_grad():
            got = gradient(network)
    except RuntimeError:
        assert not cloned
        return
    assert torch.allclose(got, right) is cloned
    assert all(layer.weight_function == [] for layer in network.layers)
