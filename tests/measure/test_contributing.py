"""The metric that CONTRIBUTING.md adds, as it stands there."""

import importlib.util
import re
import sys

import pytest
import torch

from weft import measure
from weft.measure.metric import Clips, evaluate
from weft.tests.conftest import ROOT

PAGE = (ROOT / "CONTRIBUTING.md").read_text()
TABLE = (ROOT / "measure" / "__init__.py").read_text()


@pytest.fixture
def example(tmp_path, monkeypatch):
    """The example as a module of measure/."""
    (code,) = (block for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if "METRICS" in block)
    path = tmp_path / "brightness.py"
    path.write_text(code)
    spec = importlib.util.spec_from_file_location("weft.measure.brightness", path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    monkeypatch.setattr(measure, "brightness", module, raising=False)
    spec.loader.exec_module(module)
    return module


def test_the_example_is_one_file_and_one_line(example):
    line = "*brightness.METRICS,"
    assert f"`{line}`" in PAGE
    table = TABLE[TABLE.index("METRICS = (") :].replace("*flicker.METRICS,", f"*flicker.METRICS, {line}")
    assert line in table
    names = {name: getattr(measure, name) for name in ("psnr", "ssim", "flicker", "brightness")}
    exec(table, names)
    assert names["METRICS"] == (*measure.METRICS, *example.METRICS)
    dark = torch.full((3, 12, 12, 3), 0.25)
    got = evaluate(Clips(dark, dark + 0.5), names["METRICS"])
    assert got.values["brightness"] == pytest.approx(0.5)
    assert got.text.splitlines()[-1] == "brightness        0.5000"
    assert not got.left_out
