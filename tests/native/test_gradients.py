"""Gradients of what STR-Match reads, queries and keys, with respect to the latent; and each scope that they need."""

import json
from contextlib import nullcontext, suppress

import comfy.cli_args
import comfy.model_management as management
import comfy.supported_models as models
import pytest
import torch
from comfy.patcher_extension import WrappersMP

from weft.backbones.comfy import autograd, dit, passes, recompute
from weft.backbones.comfy.loading import from_comfy
from weft.backbones.comfy.text import prompt_of
from weft.engine.call import Evaluation
from weft.engine.evaluate import evaluate_with
from weft.engine.plan import PLAIN, Control, EditPlan, Needs
from weft.engine.probe import read_calls
from weft.engine.words import POSITIVE, SOURCE
from weft.tests.native.tiny import FAMILIES, VIDEO, as_patcher, make

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


class Failing(Control):
    def attention(self, call, attend):
        raise RuntimeError("in the middle of a pass")


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


@pytest.mark.parametrize("fails", [False, True])
def test_weights_are_as_before(made, fails):
    before = {name: id(tensor) for name, tensor in made.network.state_dict(keep_vars=True).items()}
    if fails:
        with pytest.raises(RuntimeError, match="in the middle"):
            loss_and_gradient(made, plan=EditPlan((Failing(),)))
    else:
        loss_and_gradient(made)
    after = {name: id(tensor) for name, tensor in made.network.state_dict(keep_vars=True).items()}
    assert before == after
    assert not getattr(management, "in_training", False)


def has_int8():
    with suppress(ImportError):
        from comfy.quant_ops import QUANT_ALGOS

        return "int8_tensorwise" in QUANT_ALGOS
    return False


def in_int8(made):
    """(the MODEL with its layers in int8 as core's loader has them, the same as rounded in float32)."""
    family = made.family
    kind = getattr(models, family.kind)(dict(family.config))
    kind.set_inference_dtype(torch.float32, torch.float32)
    kind.quant_config = {"mixed_ops": True}
    layers = [n for n, m in made.network.named_modules() if isinstance(m, torch.nn.Linear) and "blocks." in n]
    state = {name: tensor.clone() for name, tensor in made.network.state_dict().items()}
    with torch.inference_mode():
        for layer in layers:
            weight = state[f"{layer}.weight"]
            scale = weight.abs().max() / 127
            state[f"{layer}.weight"] = (weight / scale).round().to(torch.int8)
            state[f"{layer}.weight_scale"] = scale
            told = json.dumps({"format": "int8_tensorwise"}).encode()
            state[f"{layer}.comfy_quant"] = torch.tensor(list(told), dtype=torch.uint8)
            made.network.get_submodule(layer).weight.data = state[f"{layer}.weight"].float() * scale
        model = kind.get_model(family.state, "", device="cpu")
        missing, left = model.diffusion_model.load_state_dict(state, strict=False)
        assert not missing, missing
        assert not left, left
        patcher = as_patcher(model)
        management.load_models_gpu([patcher])
    assert hasattr(model.diffusion_model.get_submodule(layers[0]).weight, "_qdata")
    return type(made)(family, patcher), made


@pytest.mark.parametrize("name", [name for name in ("wan", "ltx", "ltx audio", "h3") if name in FAMILIES])
def test_gradients_through_int8(name):
    if not has_int8():
        pytest.skip("0.3.64 has no int8: newer ComfyUI alone can be asked")
    small, rounded = in_int8(make(name))
    assert cosine(loss_and_gradient(small), loss_and_gradient(rounded)) >= SAME_DIRECTION


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_streamed_weights_give_the_same(made, dtype, monkeypatch):
    """As if no weight lay on the device: each is cloned as it comes, also when a block is evaluated again."""
    name = next(name for name, family in FAMILIES.items() if family is made.family)
    made = make(name, dtype, torch.float32)
    resident = loss_and_gradient(made)
    cloned, streams = [], autograd.cloned_streams
    monkeypatch.setattr(autograd, "cloned_streams", lambda model, device: streams(model, torch.device("meta")))
    clone = torch.clone
    monkeypatch.setattr(torch, "clone", lambda *args, **kwargs: (cloned.append(1), clone(*args, **kwargs))[1])
    assert cosine(loss_and_gradient(made), resident) >= 0.9999
    assert cloned


@pytest.mark.parametrize("name", [name for name in VIDEO if name != "h3"])  # the stand-in below has no room for it
def test_without_recompute_it_is_the_same(name, monkeypatch):
    made = make(name)
    right = loss_and_gradient(made)
    kept = []

    def plainly(run, scope, *streams):
        kept.append(1)
        return run(*(stream.clone() for stream in streams))

    monkeypatch.setattr(dit, "recomputed", plainly)
    # Some blocks add in place to what is kept of them, so copies are kept.
    with torch.autograd.graph.saved_tensors_hooks(torch.clone, lambda kept: kept):
        whole = loss_and_gradient(made)
    assert kept
    torch.testing.assert_close(whole, right, rtol=1e-4, atol=1e-6 * right.abs().max().item())


def kept_bytes(made):
    """What the graph of one look at the last block holds."""
    held = {}

    def pack(tensor):
        held[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    *_, last = (site.layer for site in from_comfy(made.patcher, made.vae).denoiser.sites if site.kind == "joint")
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss_and_gradient(made, layers={last})
    return sum(held.values())


def test_the_memory_of_a_step_does_not_grow_with_the_blocks(monkeypatch):
    """But for what goes from one to the next: a stream each."""
    shallow, deep = (make("wan", layers=layers) for layers in (2, 6))
    frames, _, h, w = shallow.family.size
    stream = frames * -(-h // 2) * -(-w // 2) * shallow.family.config["dim"] * 4
    assert kept_bytes(deep) - kept_bytes(shallow) <= 4 * stream
    monkeypatch.setattr(dit, "recomputed", lambda run, scope, *streams: run(*(s.clone() for s in streams)))
    assert kept_bytes(deep) - kept_bytes(shallow) > 10 * 4 * stream


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


def test_cores_compiler_is_off_in_passes_with_gradients(monkeypatch):
    """It records what a block allocates, and a graph outlives its block."""
    made, seen = make("wan"), []
    monkeypatch.setattr(comfy.cli_args.args, "disable_comfy_compiler", False, raising=False)

    def recording(executor, *args, **kwargs):
        seen.append(comfy.cli_args.args.disable_comfy_compiler)
        if torch.is_grad_enabled() and not seen[-1]:
            raise RuntimeError("aimdo memory compile error")
        return executor(*args, **kwargs)

    made.patcher.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "compiler", recording)
    loss_and_gradient(made)
    assert all(seen)
    assert comfy.cli_args.args.disable_comfy_compiler is False
    before = autograd._set
    monkeypatch.setattr(
        autograd, "_set", lambda owner, *what: nullcontext() if owner is comfy.cli_args.args else before(owner, *what)
    )
    with pytest.raises(RuntimeError, match="compile error"):
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
