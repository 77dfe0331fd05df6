"""ComfyUI's own classes in every tree that is found: one process holds one, so each of the others gets its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from weft.headless.comfyui import find_comfyuis, interpreter_of
from weft.tests.conftest import ROOT

pytestmark = pytest.mark.comfy
HERE = next((tree for tree in find_comfyuis() if interpreter_of(tree) == Path(sys.executable)), None)
OTHERS = [tree for tree in find_comfyuis() if tree != HERE]


@pytest.mark.parametrize("tree", OTHERS, ids=lambda tree: tree.name)
def test_native(tree):
    """`tests/native`, by that tree's own Python."""
    command = [str(interpreter_of(tree)), "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/native"]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "COMFYUI_PATH": str(tree)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
