"""The real frontend in a real browser: the shipped workflows open whole, run from the page, and help pages show."""

import json

import pytest

from weft.tests.comfy.conftest import MODES, require_elements
from weft.tests.conftest import ROOT
from weft.tests.schemas import schemas

FOLDER = ROOT / "workflows"
NAMES = sorted(p.stem for p in FOLDER.glob("*.json"))
ALONE = [name for name in NAMES if not name.endswith("_distributed")]  # the others need another pack
DEMO = "str_match"
HELP = "WeftSTRLatentOptimizer"  # the longest page stands for all; the demo has that node
FEW = {"steps": 4, "edit_steps": 2}  # values that make a run short
# How far the saved video comes, or else which videos there are.
PLAYED = """(async () => {
  app.canvas.ds.scale = 0.8;
  app.canvas.centerOnNode(app.graph._nodes.find((n) => n.type === 'SaveVideo'));
  const address = (v) => [v.src, ...[...v.querySelectorAll('source')].map((s) => s.src)].join(' ');
  const saved = () => [...document.querySelectorAll('video')].find((v) => address(v).includes('type=output'));
  for (let tries = 0; tries < 100 && !(saved()?.currentTime > 0); tries++) {
    if (saved()) Object.assign(saved(), { muted: true }).play().catch(() => {});
    await new Promise((done) => setTimeout(done, 100));
  }
  return saved()?.currentTime || [...document.querySelectorAll('video')].map(address);
})()"""
LARGEST = 200_000  # bytes of a workflow that the page saves
pytestmark = [pytest.mark.comfy, pytest.mark.each_comfyui]


@pytest.fixture(scope="module", params=ALONE)
def seen(pages, request):
    """{mode: (what the page gave on opening a workflow, and after its run where its models ship)}."""
    file = FOLDER / f"{request.param}.json"
    jobs = [{"drop": json.loads(file.read_text()), "name": file.stem}]
    if runs_here(file.stem):
        jobs.append({"run": FEW})
    return dict(zip(MODES, zip(*map(pages.do, jobs))))


def runs_here(name):
    return "toyworld/" in (FOLDER / "api" / f"{name}.json").read_text()


def test_dropped_workflow_opens_whole(seen, request):
    twin = json.loads((FOLDER / "api" / f"{request.node.callspec.params['seen']}.json").read_text())
    for opened, *_ in seen.values():
        assert opened["missing"] == []
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


def test_nothing_lies_over_anything_before_and_after_a_run(seen):
    found = {
        (mode, when): (page["overlaps"], page["spilled"])
        for mode, looks in seen.items()
        for when, page in zip(("opened", "run"), looks)
    }
    assert found == dict.fromkeys(found, ([], []))


def test_a_saved_workflow_is_small_before_and_after_a_run(seen):
    assert [page["bytes"] for looks in seen.values() for page in looks if page["bytes"] > LARGEST] == []


def test_the_workflows_that_can_run_here_do():
    assert sum(map(runs_here, ALONE)) >= 14


def test_help_page_shows(pages):
    canvas = {"only": MODES.index("canvas")}
    pages.do({"drop": json.loads((FOLDER / f"{DEMO}.json").read_text()), "name": DEMO, **canvas})
    (page,) = pages.do({"help": HELP, **canvas})
    text = page["text"]
    assert text.startswith(schemas()[HELP].display_name.removesuffix(" (Weft)"))
    assert all(slot.name in text for slot in schemas()[HELP].inputs)
    assert not {"|", "**"} & set(text.split()), "Markdown was not drawn"
    assert (page["missed"], page["wide"]) == ([], [])
    assert all(page["pictures"]), "a picture was not loaded"
    assert len(page["pictures"]) == 1


@pytest.mark.parametrize("mode", MODES)
def test_the_demo_runs_from_the_page_and_its_video_plays(pages, mode):
    only = {"only": MODES.index(mode)}
    pages.do({"drop": json.loads((FOLDER / f"{DEMO}.json").read_text()), "name": DEMO, **only})
    pages.do({"run": FEW, **only})
    ((played,),) = [answer["seen"] for answer in pages.do({"act": [["read", PLAYED]], **only})]
    if not played:  # then the frontend must be one that cannot show it
        require_elements(pages, mode, "Target prompt")
    assert isinstance(played, (int, float)), f"of these videos the saved one does not play: {played}"


def test_the_page_complains_of_nothing_of_ours(pages):
    complaints = [c for found in pages.do({"errors": True}) for c in found]
    assert [c for c in complaints if "weft" in f"{c['text']} {c['from']}".lower()] == []


def test_workflows_are_offered_as_templates(server):
    assert sorted(json.loads(server.request("/workflow_templates"))["weft"]) == NAMES
