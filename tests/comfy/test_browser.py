"""The real frontend in a real browser: the shipped workflows open whole, run from the page, and help pages show."""

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
FEW = {"steps": 4, "edit_steps": 2}  # values that make a run short
PATIENCE = 1500  # seconds, for all workflows to run
LARGEST = 200_000  # bytes of a workflow that the page saves
pytestmark = pytest.mark.comfy


@pytest.fixture(scope="module", params=[False, True], ids=["canvas", "vue"])
def seen(server, request):
    """{workflow: what the page gave on opening and after its run, with a help page}, from one visit.

    Starting the browser is what takes time.
    """
    if reason := obstacle():
        pytest.skip(f"NOT TESTED IN A BROWSER: {reason}")
    order = [name for name in ALONE if name != SHOWS_HELP] + [SHOWS_HELP]  # the last to be dropped stays open
    drops = [{"drop": json.loads((FOLDER / f"{name}.json").read_text()), "name": name} for name in order]
    runs = [job for drop in drops for job in (drop, {"run": FEW})]
    vue = request.param
    answers = visit(server.url, runs + ([] if vue else [{"help": HELP}]), vue=vue, timeout=PATIENCE)
    found = dict(zip(order, zip(answers[::2], answers[1::2])))
    return found if vue else found | {HELP: answers[-1]}


@pytest.mark.parametrize("name", ALONE)
def test_dropped_workflow_opens_whole(seen, name):
    opened, _ = seen[name]
    assert opened["missing"] == []
    assert opened["bytes"] < LARGEST
    twin = json.loads((FOLDER / "api" / f"{name}.json").read_text())
    for node in (*twin.values(), *opened["api"].values()):
        if node["class_type"] == "PreviewAny":
            node["inputs"] = {"source": node["inputs"]["source"]}  # and what it last showed
    assert without_new_inputs(opened["api"], twin) == twin


def without_new_inputs(api, twin):
    """What a page exported, less the inputs that ComfyUI's own nodes have got since the twin was made."""
    assert api.keys() == twin.keys()
    known = {key: twin[key]["inputs"] if not twin[key]["class_type"].startswith("Weft") else None for key in twin}
    return {
        key: {**node, "inputs": {k: v for k, v in node["inputs"].items() if known[key] is None or k in known[key]}}
        for key, node in api.items()
    }


@pytest.mark.parametrize("name", NAMES)
def test_nothing_lies_over_anything_before_and_after_a_run(seen, name):
    for when, page in zip(("opened", "run"), seen[name]):
        assert (when, page["overlaps"], page["spilled"]) == (when, [], [])


def test_help_page_shows(seen):
    if HELP not in seen:
        return  # asked for once, on the canvas
    text = seen[HELP]["text"]
    assert text.startswith(schemas()[HELP].display_name.removesuffix(" (Weft)"))
    assert all(slot.name in text for slot in schemas()[HELP].inputs)
    assert not {"|", "**"} & set(text.split()), "Markdown was not drawn"


def test_workflows_are_offered_as_templates(server):
    assert sorted(json.loads(server.request("/workflow_templates"))["weft"]) == NAMES
