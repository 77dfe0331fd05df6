import subprocess
import sys
from pathlib import Path

import pytest
import torch

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
