"""Seeds of 64 bits in ComfyUI."""

import pytest

from weft.headless.client import WorkflowError
from weft.tests.comfy.graphs import plain

pytestmark = pytest.mark.comfy


@pytest.mark.parametrize("seed", [2**53 + 1, 2**64 - 1])
def test_a_seed_of_64_bits_is_taken(editor, seed):
    graph = plain()
    graph["sample"]["inputs"]["seed"] = seed
    assert editor(graph).bits


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_other_seeds_are_refused(editor, seed):
    graph = plain()
    graph["sample"]["inputs"]["seed"] = seed
    with pytest.raises(WorkflowError, match="seed"):
        editor(graph)
