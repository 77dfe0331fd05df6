"""A bounded run with fixed seeds: nothing is refused in an ugly way, and the server goes on working."""

import pytest

from weft.headless.comfyui import find_comfyui
from weft.headless.server import comfyui_server
from weft.tests.fuzz.prompts import prompt
from weft.tests.fuzz.trial import Tally, prepare, still_works, try_one

pytestmark = pytest.mark.comfy
PROMPTS, STRIDE = 300, 100


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    found, base = find_comfyui(), tmp_path_factory.mktemp("fuzz")
    if found is None:
        pytest.skip("NOT TESTED INSIDE COMFYUI: none found; set COMFYUI_PATH and run `make test`")
    prepare(base)
    with comfyui_server(found, base, arguments=["--cpu"]) as running:
        yield running


@pytest.mark.parametrize("first", range(0, PROMPTS, STRIDE))
def test_no_prompt_is_refused_in_an_ugly_way_or_stops_the_server(server, first):
    tally = Tally()
    for seed in range(first, first + STRIDE):
        tally.add(seed, *try_one(server, prompt(seed)))
    assert not tally.ugly
    assert tally.outcomes["edited"] > STRIDE / 10  # it is the edits that are tried, not the door
    assert tally.outcomes["refused by a node"] > STRIDE / 20
    assert still_works(server)


def test_a_seed_is_a_prompt():
    assert prompt(7) == prompt(7)
    assert prompt(7) != prompt(8)
