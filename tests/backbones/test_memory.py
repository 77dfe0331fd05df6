import gc
import weakref
from contextlib import nullcontext

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
