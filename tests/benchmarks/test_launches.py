"""What methods ask of a GPU beside the network's own, counted on tensors without numbers: nothing can wait for them."""

from dataclasses import replace
from importlib.util import find_spec

import pytest
import torch

from weft.benchmarks import launches
from weft.benchmarks.gpu.models import TINY
from weft.kernels import attention_map
from weft.tests.conftest import ROOT

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
A_LAYER = 2.0  # launches beside the network's own
# More than that, and the help page that says why.
MORE = {"FateZero": (13, "WeftFateZero"), "STEM": (42, "WeftSTEMAttention")}


def test_no_method_waits_and_none_launches_more_than_its_page_says():
    """A tensor of the meta device that is asked for a number raises: every count here is of a step that never waits."""
    counts = launches.on_images(replace(TINY, widths=(8, 8, 8, 8)))
    assert {c.name for c in counts} >= {"Injection", "Spatio-temporal", "COVE", "Gather-swap", "TokenFlow", *MORE}
    for count in counts:
        most, page = MORE.get(count.name, (A_LAYER, None))
        assert count.extra <= most, count
        if page is not None:
            assert "launches" in (ROOT / "web" / "docs" / f"{page}.md").read_text(), page


def test_the_counter_counts_kernels_and_attention_as_one_launch_each_and_sees_a_wait():
    x = torch.empty(1, 2, 6, 8, device="meta")
    with launches.counted() as seen:
        torch.nn.functional.scaled_dot_product_attention(x, x, x)
        torch.add(x, x).view(-1)
    assert seen.count == 2
    with launches.counted() as seen:
        attention_map(x, x)
    assert seen.count == 2  # normalisers and maps
    with pytest.raises(RuntimeError, match="item"):
        x.sum().item()
