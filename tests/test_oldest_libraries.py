"""Every model that ships loads and edits with the oldest libraries that requirements.txt allows, in their own Python.

That is the one that WEFT_OLD_PYTHON names, or `.venv-old`, which `make oldest` makes.
"""

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

from weft.headless.environment import OLDEST, interpreter, oldest
from weft.tests.conftest import ROOT
from weft.tests.load_and_step import bounds, shipped


def old_python():
    named = os.environ.get("WEFT_OLD_PYTHON")
    python = Path(named) if named else interpreter(OLDEST)
    if named and not python.is_file():
        raise ValueError(f"WEFT_OLD_PYTHON names '{named}', and there is no such file")
    return python


def test_shipped_models_load_and_edit_with_the_oldest_libraries():
    python = old_python()
    if not python.is_file():
        pytest.skip("NOT TESTED WITH THE OLDEST LIBRARIES: run `make oldest`, or set WEFT_OLD_PYTHON")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    run = [str(python), "-m", "weft.tests.load_and_step"]
    done = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, timeout=900, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert set(told["made"]) == {folder.name for folder in shipped()} | {"motion", "sam", "detector", "clip"}
    assert all(told["made"].values())
    newer = {name: (got, bounds()[name]) for name, got in told["libraries"].items() if not same(got, bounds()[name])}
    assert not newer, f"{python} has other versions than the lower bounds: {newer}"


def same(version, bound):
    """2.4.0+cpu is 2.4."""
    got, want = ([int(n) for n in re.findall(r"\d+", text.split("+")[0])] for text in (version, bound))
    return got[: len(want)] == want and not any(got[len(want) :])


def test_the_oldest_are_the_lower_bounds():
    assert oldest(["torch>=2.4", "# a word", "", "numpy>=1.25  # why"]) == ["torch==2.4", "numpy==1.25"]
    assert dict(line.split("==") for line in oldest((ROOT / "requirements.txt").read_text().splitlines())) == bounds()
    with pytest.raises(ValueError, match=r"'x==1' has no lower bound"):
        oldest(["x==1"])
    assert same("2.4.0+cpu", "2.4")
    assert same("1.0", "1.0")
    assert not same("2.40", "2.4")
    assert not same("2.4.1", "2.4")
