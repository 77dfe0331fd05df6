"""ComfyUI runs every node under `torch.inference_mode()`, and may spoil weights when it moves them."""

import pytest
import torch
from torch import nn

from weft.backbones.diffusers.loading import load_backbone
from weft.backbones.memory import PlainMemory
from weft.engine.autograd import is_ordinary, make_ordinary, ordinary, plain_torch
from weft.engine.edit import edit
from weft.engine.inversion import invert
from weft.engine.plan import PLAIN
from weft.methods.latent_blend import LatentBlend
from weft.methods.str_match import STRLatentOptimizer
from weft.methods.str_view import look


def made_in_inference_mode():
    with torch.inference_mode():
        return torch.randn(3)


def moved_from_inference_mode():
    with torch.inference_mode():
        layer = nn.Linear(1, 3)
    layer.to(torch.float64)
    assert not layer.bias.is_inference()  # and yet it has no version counter
    return layer.bias


@pytest.mark.parametrize("make", [made_in_inference_mode, moved_from_inference_mode])
def test_spoiled_tensors_are_known_and_copied(make):
    tensor = make()
    assert not is_ordinary(tensor)
    got = ordinary(tensor)
    assert is_ordinary(got)
    assert not got.requires_grad
    assert torch.equal(got, tensor)
    weight = torch.ones(3, dtype=got.dtype, requires_grad=True)
    (weight * got).sum().backward()  # saves `got`
    assert torch.equal(weight.grad, got)


def test_ordinary_tensors_are_passed_through():
    tensor = torch.randn(3)
    assert is_ordinary(tensor)
    assert ordinary(tensor) is tensor


def test_plain_torch_leaves_inference_mode_and_makes_no_graph():
    @plain_torch
    def double(x):
        """Twice x."""
        return 2 * x

    x = torch.ones(2, requires_grad=True)
    assert not double(x).requires_grad
    assert double.__doc__ == "Twice x."
    with torch.inference_mode():
        assert is_ordinary(double(x))


def test_make_ordinary_repairs_weights_and_buffers_in_place():
    module = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 3, bias=False)).requires_grad_(False)
    good = module[2].weight
    want = {k: v.clone() for k, v in module.state_dict().items()}
    with torch.inference_mode():
        module[:2].double()
    assert not is_ordinary(module[0].weight)
    make_ordinary(module)
    tensors = [*module.parameters(), *module.buffers()]
    assert all(is_ordinary(t) for t in tensors)
    assert all(isinstance(p, nn.Parameter) and not p.requires_grad for p in module.parameters())
    assert module[2].weight is good
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor.double(), want[name].double())
    x = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    module[:2].eval()(x).sum().backward()
    assert x.grad.any()


@pytest.mark.parametrize("moved", [False, True], ids=["made", "moved"])
def test_weights_that_are_shared_stay_shared(moved):
    with torch.inference_mode(not moved):
        module = nn.ModuleDict({"read": nn.Embedding(5, 3), "write": nn.Linear(3, 5), "norm": nn.BatchNorm1d(3)})
        module["write"].weight = module["read"].weight
        module["norm"].register_buffer("again", module["norm"].running_mean)
    if moved:
        with torch.inference_mode():
            module.double()
            module["write"].weight = module["read"].weight  # torch moves each name by itself
            module["norm"].again = module["norm"].running_mean
    names = set(module.state_dict())
    make_ordinary(module)
    assert is_ordinary(module["read"].weight)
    assert module["write"].weight is module["read"].weight
    assert module["norm"].again is module["norm"].running_mean
    assert len(list(module.parameters())) == 4
    assert set(module.state_dict()) == names


def whole_edit(backbone, frames):
    """Everything a workflow does, and every picture and number that comes out of it."""
    mask = torch.zeros(1, *frames.shape[1:3])
    mask[:, :7, :9] = 1
    source, target = backbone.text.embed("a red square"), backbone.text.embed("a blue cross")
    trajectory = invert(backbone, backbone.codec.encode(frames), source, steps=2)
    plan = PLAIN.then(STRLatentOptimizer(strength=0.2)).then(LatentBlend(mask))
    latents = edit(backbone, trajectory, target, plan=plan)
    return trajectory.latents, latents, backbone.codec.decode(latents), look(backbone, trajectory, (0.4, 0.6)).painted


@pytest.fixture(scope="module")
def outside(tiny_folder):
    frames = torch.rand(3, 12, 20, 3, generator=torch.Generator().manual_seed(0))
    return frames, whole_edit(load_backbone(tiny_folder, memory=PlainMemory("cpu")), frames)


def same_bits(got, want):
    assert len(got) == len(want)
    assert all(torch.equal(g, w) for g, w in zip(got, want))


def test_an_edit_in_inference_mode_is_the_edit_outside_it_bit_for_bit(tiny_folder, outside):
    frames, want = outside
    with torch.inference_mode():
        backbone = load_backbone(tiny_folder, memory=PlainMemory("cpu"))
        got = whole_edit(backbone, frames.clone())
    same_bits(got, want)
    assert all(is_ordinary(p) for p in backbone.denoiser.network.parameters())


def there_and_back(backbone):
    """Moves every weight, as an offload does; their values stay."""
    for module in (backbone.denoiser.network, backbone.codec.vae, backbone.text.encoder):
        nn.Module.to(module, torch.float64)
        nn.Module.to(module, torch.float32)
    return backbone


@pytest.fixture(scope="module")
def moved(tiny_folder, outside):
    """The edit with weights that moved outside inference mode; a CPU may round otherwise at another address."""
    return whole_edit(there_and_back(load_backbone(tiny_folder, memory=PlainMemory("cpu"))), outside[0])


@pytest.mark.parametrize("inference", [True, False], ids=["inside", "outside"])
def test_spoiled_weights_are_repaired_before_a_run(tiny_folder, outside, moved, inference):
    backbone = load_backbone(tiny_folder, memory=PlainMemory("cpu"))
    with torch.inference_mode():
        there_and_back(backbone)
    assert not is_ordinary(backbone.denoiser.network.conv_in.weight)
    with torch.inference_mode(inference):
        same_bits(whole_edit(backbone, outside[0].clone()), moved)
    for got, want in zip(moved, outside[1]):
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-3)


def test_str_guidance_did_something(outside, tiny_folder):
    """Or the comparisons above would prove nothing."""
    frames, (_, latents, _, _) = outside
    backbone = load_backbone(tiny_folder, memory=PlainMemory("cpu"))
    trajectory = invert(backbone, backbone.codec.encode(frames), backbone.text.embed("a red square"), steps=2)
    assert not torch.equal(edit(backbone, trajectory, backbone.text.embed("a blue cross")), latents)
