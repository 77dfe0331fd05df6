"""The real frontend in a real browser: the shipped workflows open whole, and help pages show."""

import json

import pytest

from weft.tests.conftest import ROOT
from weft.tests.schemas import schemas
from weft.workflows.build.browser import obstacle, visit

FOLDER = ROOT / "workflows"
NAMES = sorted(p.stem for p in FOLDER.glob("*.json"))
ALONE = [name for name in NAMES if not name.endswith("_distributed")]  # the others need another pack
HELP = "WeftSTRLatentOptimizer"  # the longest page stands for all
SHOWS_HELP = "str_match"  # a workflow with that node
pytestmark = pytest.mark.comfy


@pytest.fixture(scope="module")
def seen(server):
    """{workflow or node id: what the page gave}, from one visit: starting the browser is what takes time."""
    if reason := obstacle():
        pytest.skip(f"NOT TESTED IN A BROWSER: {reason}")
    order = [name for name in ALONE if name != SHOWS_HELP] + [SHOWS_HELP]  # the last to be dropped stays open
    drops = [{"drop": json.loads((FOLDER / f"{name}.json").read_text()), "name": name} for name in order]
    return dict(zip([*order, HELP], visit(server.url, [*drops, {"help": HELP}])))


@pytest.mark.parametrize("name", ALONE)
def test_dropped_workflow_opens_whole(seen, name):
    assert seen[name]["missing"] == []
    assert seen[name]["api"] == json.loads((FOLDER / "api" / f"{name}.json").read_text())


def test_help_page_shows(seen):
    text = seen[HELP]["text"]
    assert text.startswith(schemas()[HELP].display_name.removesuffix(" (Weft)"))
    assert all(slot.name in text for slot in schemas()[HELP].inputs)
    assert not {"|", "**"} & set(text.split()), "Markdown was not drawn"


def test_workflows_are_offered_as_templates(server):
    assert sorted(json.loads(server.request("/workflow_templates"))["weft"]) == NAMES
