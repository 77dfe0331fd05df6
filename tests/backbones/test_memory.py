import gc
import weakref
from contextlib import nullcontext

import pytest
import torch
from torch import nn

from weft.backbones import memory
from weft.backbones.memory import PlainMemory
from weft.engine.autograd import is_ordinary


def test_half_precision_only_where_it_is_fast():
    assert PlainMemory("cpu").default_dtype() == torch.float32
    assert PlainMemory("cuda").default_dtype() == torch.float16


def test_the_device_is_the_gpu_where_there_is_one():
    assert PlainMemory().device.type == ("cuda" if torch.cuda.is_available() else "cpu")


def test_a_module_is_moved_and_repaired_for_as_long_as_it_is_used():
    module = nn.Linear(2, 3).requires_grad_(False)
    with torch.inference_mode():
        module.double()
    assert not is_ordinary(module.weight)
    with torch.inference_mode(), PlainMemory("cpu").resident(module):
        assert torch.is_inference_mode_enabled()  # the caller's mode is its own business
        assert is_ordinary(module.weight)
        assert is_ordinary(module.bias)
    with PlainMemory("meta").resident(module, activations=10):
        assert module.weight.device.type == "meta"


class Keeps:
    """ComfyMemory without ComfyUI: it keeps what it was asked for."""

    device = torch.device("cpu")

    def __init__(self):
        self.kept = []

    def resident(self, module, activations=0):
        self.kept.append(module)
        return nullcontext()


def test_what_an_adapted_model_has_to_itself_goes_with_it_and_the_rest_stays_where_it_was(monkeypatch):
    monkeypatch.setattr(memory, "ComfyMemory", Keeps)
    trunk, shared, own = Keeps(), nn.Linear(2, 3), nn.Linear(2, 3)
    branch = memory._Branch(trunk, own)
    with branch.resident(shared), branch.resident(own):
        pass
    assert trunk.kept == [shared]
    gone = weakref.ref(own)
    del branch, own
    gc.collect()
    assert gone() is None
    assert PlainMemory("cpu").branch(shared).device.type == "cpu"


def test_nothing_is_known_to_limit_main_memory():
    assert PlainMemory("cpu").free() is None
    assert not PlainMemory("cpu").has_bfloat16()


@pytest.mark.parametrize("capability", [7, 8, 9])
def test_what_torch_keeps_for_later_is_free_too(monkeypatch, capability):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (100, 1000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 50)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 20)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (capability, 0))
    assert PlainMemory("cuda").free() == 130
    assert PlainMemory("cuda").has_bfloat16() == (capability >= 8)


def test_a_branch_asks_its_trunk(monkeypatch):
    monkeypatch.setattr(memory, "ComfyMemory", Keeps)
    trunk = PlainMemory("cpu")
    monkeypatch.setattr(trunk, "free", lambda: 17)
    monkeypatch.setattr(trunk, "has_bfloat16", lambda: True)
    branch = memory._Branch(trunk, nn.Linear(2, 3))
    assert (branch.free(), branch.has_bfloat16()) == (17, True)
