import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch

from weft.kernels import attention_map, dispatch, str_loss
from weft.kernels.dispatch import choose
from weft.tests.kernels.guards import Guards


@pytest.fixture(autouse=True)
def _clean(monkeypatch):
    monkeypatch.delenv("WEFT_KERNELS", raising=False)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


x = torch.zeros(2)


def test_auto_on_a_cpu_is_chunked():
    assert choose("auto", x) == "chunked"


@pytest.mark.parametrize("name", ["reference", "chunked"])
def test_an_order_is_carried_out(name, monkeypatch):
    assert choose(name, x) == name
    monkeypatch.setenv("WEFT_KERNELS", name)
    assert choose("auto", x) == name


def test_what_cannot_be_met_says_why(monkeypatch):
    with pytest.raises(ValueError, match=r"Triton kernel, but .*(cpu|not installed)"):
        choose("triton", x)
    monkeypatch.setenv("WEFT_KERNELS", "triton")
    with pytest.raises(ValueError, match="WEFT_KERNELS='triton' asks"):
        choose("auto", x)


def test_an_obstacle_turns_auto_away_and_refuses_an_order(monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert choose("auto", x) == "triton"
    assert choose("auto", x, "head size 999 is over 256") == "chunked"
    with pytest.raises(ValueError, match="head size 999"):
        choose("triton", x, "head size 999 is over 256")
    with pytest.raises(ValueError, match="not float64"):
        choose("triton", x.double())


def test_an_unknown_wish_is_an_error():
    with pytest.raises(ValueError, match="'fast' is not one of auto, reference, chunked, triton"):
        choose("fast", x)


@pytest.mark.parametrize(
    ("line", "version"),
    [("__version__ = '3.2.0'", (3, 2)), ('__version__ = "3.10.1+git"', (3, 10)), ("from .version import *", (0, 0))],
)
def test_an_old_triton_is_left_alone(line, version, monkeypatch, tmp_path):
    """Those of torch 2.4 to 2.6 end the process while they compile for Hopper; so they are not even imported."""
    init = tmp_path / "triton" / "__init__.py"
    init.parent.mkdir()
    init.write_text(f"raise SystemExit\n{line}\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "triton", raising=False)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(dispatch, "_triton_version", dispatch._triton_version.__wrapped__)
    assert dispatch._triton_version() == version
    assert choose("auto", x) == ("triton" if version >= (3, 3) else "chunked")
    if version < (3, 3):
        with pytest.raises(ValueError, match=r"Triton is older than 3\.3"):
            choose("triton", x)


@pytest.fixture
def unbuildable(monkeypatch):
    """Kernels that Triton cannot build: a module that stands in for the fused one."""
    pytest.importorskip("triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(dispatch, "_unbuilt", set())
    tried = []

    def fails(*args):
        tried.append(args)
        raise RuntimeError("Failed to find C compiler.\nPlease specify one")

    stand_in = types.ModuleType("fused")
    stand_in.attention_map_fused = stand_in.rows_fused = stand_in.rows_fused_backward = fails
    for op in ("attention_map", "str_loss"):
        monkeypatch.setitem(sys.modules, f"weft.kernels.{op}.fused", stand_in)
    return tried


def test_a_kernel_that_cannot_be_built_is_tried_once_and_told_in_one_line(unbuildable, caplog):
    q, k = torch.randn(2, 1, 2, 5, 4)
    for _ in range(3):
        assert torch.equal(attention_map(q, k), attention_map(q, k, backend="chunked"))
    assert len(unbuildable) == len(caplog.records) == 1
    assert "Failed to find C compiler" in caplog.text
    assert "Please specify" not in caplog.text
    assert "WEFT_KERNELS=chunked" in caplog.text


def test_nor_is_one_for_the_gradient(unbuildable):
    sides = [*torch.randn(2, 2, 1, 5, 4), torch.randn(5, 2, 2).softmax(-1)] * 2
    sides = [y.requires_grad_(n > 2) for n, y in enumerate(y.clone() for y in sides)]
    got, want = (torch.autograd.grad(str_loss(*sides, backend=b)[0], sides[3:]) for b in ("auto", "chunked"))
    assert all(torch.equal(*pair) for pair in zip(got, want))
    assert len(unbuildable) == 2


def test_an_order_that_cannot_be_carried_out_ends_the_run(unbuildable, monkeypatch):
    q, k = torch.randn(2, 1, 2, 5, 4)
    with pytest.raises(RuntimeError, match="C compiler"):
        attention_map(q, k, backend="triton")
    monkeypatch.setenv("WEFT_KERNELS", "triton")
    with pytest.raises(RuntimeError, match="C compiler"):
        attention_map(q, k)


def test_a_device_out_of_memory_is_not_a_kernel_that_cannot_be_built(unbuildable, monkeypatch):
    def full(*args):
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(sys.modules["weft.kernels.attention_map.fused"], "attention_map_fused", full)
    with pytest.raises(torch.OutOfMemoryError):
        attention_map(*torch.randn(2, 1, 2, 5, 4))


def test_triton_is_not_imported_with_the_pack():
    code = "import sys, weft.kernels; sys.exit('triton' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2]).returncode == 0


def outside(buffer, offset, value):
    torch.as_strided(buffer, (1,), (1,), buffer.storage_offset() + offset).fill_(value)


@pytest.mark.parametrize("offset", [-1, 6, 4000])
def test_guards_see_a_store_out_of_place(offset):
    with pytest.raises(AssertionError, match="wrote"), Guards():
        outside(torch.empty(2, 3), offset, float("nan"))


def test_guards_see_a_changed_input_and_poison_loads():
    with pytest.raises(AssertionError, match="was changed"), Guards() as g:
        g.input(torch.ones(3)).zero_()
    with Guards() as g:
        fenced = g.input(torch.ones(3))
        assert torch.as_strided(fenced, (5,), (1,), fenced.storage_offset() - 1).isnan().tolist() == [1, 0, 0, 0, 1]
        assert torch.empty(4).isnan().all()
        assert torch.equal(torch.zeros(4), torch.tensor([0.0] * 4))
        fenced.copy_(fenced)
