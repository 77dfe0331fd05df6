"""What nodes are given is what their sockets say, and what they raise can be printed."""

import importlib
import sys
from types import SimpleNamespace

import pytest
import torch

from weft.engine.plan import PLAIN


class Node:
    """A node as ComfyUI finishes it, whose one class attribute is its schema."""

    SCHEMA = SimpleNamespace(inputs=[])

    @classmethod
    def execute(cls, **inputs):
        return inputs


@pytest.fixture
def guard(monkeypatch):
    """`weft.nodes.guard`, loaded beside a stand-in for ComfyUI and forgotten afterwards."""
    io = SimpleNamespace(ComfyNode=object, Input=object)
    monkeypatch.setitem(sys.modules, "comfy_api", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "comfy_api.v0_0_2", SimpleNamespace(ComfyExtension=object, io=io))
    with monkeypatch.context() as loading:
        for name in ("weft.nodes", "weft.nodes.guard"):
            loading.delitem(sys.modules, name, raising=False)
        yield importlib.import_module("weft.nodes.guard")
        for name in ("weft.nodes", "weft.nodes.guard"):
            del sys.modules[name]


def slot(kind, optional=False, **bounds):
    return SimpleNamespace(id="x", optional=optional, get_io_type=lambda: kind, **bounds)


def run(guard, given, value):
    node = type("Guarded", (Node,), {"SCHEMA": SimpleNamespace(inputs=[given])})
    return guard.guarded(node).execute(x=value)


@pytest.mark.parametrize("value", ["a wire", 3, [1]], ids=str)
def test_what_a_lazy_node_has_so_far_is_looked_at_as_well(guard, value):
    class Lazy(Node):
        SCHEMA = SimpleNamespace(inputs=[slot("WEFT_MODEL")])

        @classmethod
        def check_lazy_status(cls, **inputs):
            return ["more"]

    lazy = guard.guarded(Lazy)
    with pytest.raises(ValueError, match=r"'x' \(WEFT_MODEL\) wants a wire"):
        lazy.check_lazy_status(x=value)
    assert lazy.check_lazy_status(x=None) == ["more"]  # not there yet
    assert not hasattr(guard.guarded(type("Eager", (Node,), {})), "check_lazy_status")


RIGHT = {
    "text": ("STRING", "a cat"),
    "choice": ("COMBO", "best"),
    "number": ("INT", 3),
    "whole number for a fraction": ("FLOAT", 3),
    "switch": ("BOOLEAN", True),
    "frames": ("IMAGE", torch.zeros(2, 8, 8, 3)),
    "mask": ("MASK", torch.zeros(1, 8, 8)),
    "latent": ("LATENT", {"samples": torch.zeros(1)}),
    "conditioning": ("CONDITIONING", []),
    "plan": ("WEFT_PLAN", PLAIN),
    "unknown socket": ("THEIRS", object()),
}
WRONG = {
    "list on a text": ("STRING", ["a"], "wants a text"),
    "list on a menu": ("COMBO", ["a", "b", "c"], "wants a text"),
    "object on a menu": ("COMBO", {"a": 1}, "wants a text"),
    "nothing on a menu": ("COMBO", None, "wants a text"),
    "half a character": ("STRING", "a\ud800b", "character 2"),
    "half a character in a menu": ("COMBO", "\udfff", "character 1"),
    "text for a number": ("INT", "3", "wants a whole number"),
    "fraction": ("INT", 3.5, "wants a whole number"),
    "no number": ("FLOAT", float("nan"), "wants a number"),
    "infinity": ("FLOAT", float("inf"), "wants a number"),
    "too large": ("INT", 2**70, "0..10"),
    "list on a switch": ("BOOLEAN", [], "true or false"),
    "text on frames": ("IMAGE", "clip.mp4", "wants frames"),
    "one picture": ("IMAGE", torch.zeros(8, 8, 3), "wants frames"),
    "number on a mask": ("MASK", 1.0, "wants masks"),
    "empty latent": ("LATENT", {}, "wants latents"),
    "text on conditioning": ("CONDITIONING", "a cat", "wants an encoded prompt"),
    "text on a model": ("WEFT_MODEL", "toyworld/image", "(WEFT_MODEL) wants a wire, got the text 'toyworld/image'"),
    "another object on a plan": ("WEFT_PLAN", object(), "(WEFT_PLAN) wants a wire, got a object"),
    "nothing on a model": ("WEFT_MODEL", None, "wants a wire"),
    "literal on a socket of others": ("THEIRS", {"a": 1}, "(THEIRS) wants a wire"),
}


@pytest.mark.parametrize(("kind", "value"), RIGHT.values(), ids=RIGHT)
def test_what_fits_comes_through(guard, kind, value):
    assert run(guard, slot(kind, min=0, max=10), value) == {"x": value}


@pytest.mark.parametrize(("kind", "value", "words"), WRONG.values(), ids=WRONG)
def test_what_does_not_fit_is_refused_in_one_short_line_that_names_the_input(guard, kind, value, words):
    with pytest.raises(ValueError, match="'x'") as refusal:
        run(guard, slot(kind, min=0, max=10), value)
    told = str(refusal.value)
    assert words in told
    assert "\n" not in told
    assert len(told) < 200
    told.encode()


def test_an_optional_socket_may_hold_nothing(guard):
    assert run(guard, slot("WEFT_PLAN", optional=True), None) == {"x": None}


def test_no_more_than_a_screen_of_a_long_value_is_repeated(guard):
    with pytest.raises(ValueError, match="'x'") as refusal:
        run(guard, slot("WEFT_MODEL"), "x" * 10**6)
    assert len(str(refusal.value)) < 200


@pytest.mark.parametrize("repeated", ["x" * 5000, "a\n\nb", "x\r\n" * 3000], ids=["long", "lines", "both"])
def test_a_refusal_that_repeats_a_text_is_one_line_that_fits_a_screen(guard, repeated):
    class Repeating(Node):
        @classmethod
        def execute(cls, **inputs):
            raise ValueError(f"no dtype '{repeated}': want one of float32, float16")

    with pytest.raises(ValueError, match=r"no dtype '.*want one of float32, float16$") as refusal:
        guard.guarded(Repeating).execute()
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) <= guard.SCREEN


class Failing(Node):
    error = ValueError("no word '\ud83d\x1b[2J'")

    @classmethod
    def execute(cls, **inputs):
        try:
            raise cls.error
        except ValueError as error:
            raise RuntimeError("it failed") from error


def test_an_error_is_printable_with_all_that_led_to_it(guard):
    """ComfyUI logs the whole chain."""
    with pytest.raises(ValueError, match="it failed") as failure:
        guard.guarded(Failing).execute()
    chain = failure.value
    assert chain.__cause__ is None
    assert chain.__suppress_context__


def test_a_printable_error_stays_the_very_one(guard):
    node = type("Plain", (Failing,), {"error": ValueError("no word 'café'\nline 2")})
    with pytest.raises(RuntimeError, match="it failed") as failure:
        guard.guarded(node).execute()
    assert isinstance(failure.value.__cause__, ValueError)


@pytest.mark.parametrize(
    ("text", "shown"),
    [("café 日本 🙂", None), ("a\ud800b", "a\\ud800b"), ("\x1b[2J\x00", "\\x1b[2J\\x00"), ("two\n\tlines", None)],
)
def test_printable(guard, text, shown):
    assert guard.printable(text) == (shown or text)
    guard.printable(text).encode()
