"""Tests of the Triton kernels: on a GPU where there is one, else in Triton's CPU interpreter.

The interpreter has to be asked for before Triton is first imported, and a process that has it cannot compile. So these
files are collected only where they can run; `tests/kernels/test_fused.py` runs each one in a process of its own.
"""

import os
from importlib.util import find_spec

import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
if find_spec("triton") is None or not (INTERPRETED or torch.cuda.is_available()):
    collect_ignore_glob = ["test_*.py"]
