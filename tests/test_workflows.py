"""The shipped workflows fit the nodes as they are now, fit each other, and hold what the build was told to put in."""

import json

import pytest
from PIL import Image

from weft.backbones.known_models import KNOWN
from weft.tests.conftest import ROOT
from weft.tests.schemas import schemas
from weft.workflows.build.cards import CARDS, SIDE, shows_its_graph
from weft.workflows.build.graphs import GRAPHS

FOLDER = ROOT / "workflows"
CORE = {  # the nodes of ComfyUI that we use -> their widgets, in order
    "LoadVideo": ("file",),
    "GetVideoComponents": (),
    "MaskToImage": (),
    "SolidMask": ("value", "width", "height"),
    "ImageFromBatch": ("batch_index", "length"),
    "ImageScale": ("upscale_method", "width", "height", "crop"),
    "GrowMask": ("expand", "tapered_corners"),
    "MaskComposite": ("x", "y", "operation"),
    "CreateVideo": ("fps",),
    "SaveVideo": ("filename_prefix", "format", "codec"),
    "PreviewAny": (),
    "CheckpointLoaderSimple": ("ckpt_name",),
    "UNETLoader": ("unet_name", "weight_dtype"),
    "CLIPLoader": ("clip_name", "type", "device"),
    "DualCLIPLoader": ("clip_name1", "clip_name2", "type", "device"),
    "VAELoader": ("vae_name",),
    "CLIPTextEncode": ("text",),
    "ModelSamplingSD3": ("shift",),
}
DISTRIBUTED = {"DistributedSeed": ("seed", "control_after_generate"), "DistributedCollector": ("load_balance",)}
CORE |= DISTRIBUTED  # of ComfyUI-Distributed, in the workflow that is named after it
BROWSERS = {"control_after_generate"}  # widgets that the server does not know
SHIPPED = {
    "WeftLoadSAM": "sam/sam.safetensors",
    "WeftTextToBoxes": "detector/config.json",
}  # node -> a file of its model
NOTES = {"MarkdownNote"}  # drawn by the browser, unknown to the server
ANY = "*"  # the socket type of Preview Any


@pytest.fixture(params=sorted(p.stem for p in FOLDER.glob("*.json")))
def name(request):
    return request.param


@pytest.fixture
def ui(name):
    return json.loads((FOLDER / f"{name}.json").read_text())


@pytest.fixture
def api(name):
    return json.loads((FOLDER / "api" / f"{name}.json").read_text())


def widgets(node):
    """{name: value} of a node in UI format, where values have no names."""
    if node["type"] in schemas():
        names = [slot.name for slot in schemas()[node["type"]].inputs if slot.is_widget]
        assert len(names) == len(node.get("widgets_values", [])), f"{node['title']}: saved with other widgets"
    else:
        names = CORE[node["type"]]
    return {n: v for n, v in zip(names, node.get("widgets_values", [])) if n not in BROWSERS}


def as_api(ui):
    """The graph as the server wants it, made from the UI format by hand."""
    sources = {link: [str(node), slot] for link, node, slot, *_ in ui["links"]}
    graph = {}
    for node in ui["nodes"]:
        if node["type"] not in NOTES:
            linked = {i["name"]: sources[i["link"]] for i in node["inputs"] if i["link"] is not None}
            graph[str(node["id"])] = {
                "inputs": widgets(node) | linked,
                "class_type": node["type"],
                "_meta": {"title": node["title"]},
            }
    return graph


def test_both_workflows_ship():
    twins = sorted(p.stem for p in (FOLDER / "api").glob("*.json"))
    assert sorted(p.stem for p in FOLDER.glob("*.json")) == twins == sorted(GRAPHS)


def test_format_and_size(ui):
    assert ui["version"] == 0.4
    assert len(ui["nodes"]) <= 20


def test_twin_has_the_same_nodes_links_and_values(ui, api):
    for node in api.values():
        if node["class_type"] == "PreviewAny":
            del node["inputs"]["preview"]  # what it last showed, which the UI format does not keep
    assert as_api(ui) == api


def test_only_our_nodes_and_the_core(ui):
    strangers = {n["type"] for n in ui["nodes"]} - set(schemas()) - set(CORE) - NOTES
    assert not strangers


def test_nodes_for_several_machines_are_in_the_workflow_that_says_so(name, ui):
    theirs = {n["type"]: n for n in ui["nodes"] if n["type"] in DISTRIBUTED}
    assert set(theirs) == (set(DISTRIBUTED) if name.endswith("_distributed") else set())
    if theirs:
        assert theirs["DistributedSeed"]["widgets_values"] == [0, "fixed"]  # else the parts' numbers would be drawn


def test_our_nodes_have_these_inputs_and_take_these_values(api):
    for node in api.values():
        if schema := schemas().get(node["class_type"]):
            slots = {slot.name: slot for slot in schema.inputs}
            assert set(node["inputs"]) <= set(slots), node["_meta"]["title"]
            assert {n for n, s in slots.items() if not s.optional} <= set(node["inputs"]), node["_meta"]["title"]
            typed = {n: v for n, v in node["inputs"].items() if slots[n].is_widget and not isinstance(v, list)}
            bad = [n for n, v in typed.items() if not slots[n].takes(v)]  # a list is a link from another node
            assert not bad, f"{node['_meta']['title']}: {bad}"


def test_links_join_sockets_of_one_type(ui):
    nodes = {node["id"]: node for node in ui["nodes"]}
    ours = {slot.type for s in schemas().values() for slot in (*s.inputs, *s.outputs)}
    for _, start, output, end, entry, kind in ui["links"]:
        given, wanted = nodes[start]["outputs"][output]["type"], nodes[end]["inputs"][entry]["type"]
        assert given == wanted == kind or wanted == kind == ANY
        assert not kind.startswith("WEFT_") or kind in ours, f"no node has a socket {kind}"
        for node, side, slot in ((nodes[start], "outputs", output), (nodes[end], "inputs", entry)):
            if schema := schemas().get(node["type"]):
                named = {s.name: s.type for s in getattr(schema, side)}
                assert kind in (named[node[side][slot]["name"]], ANY), f"{node['title']}: its {side} have changed"


def test_titles_are_unique_and_short(ui):
    titles = [node["title"] for node in ui["nodes"]]
    assert len(set(titles)) == len(titles)
    assert all("." not in t and "=" not in t and len(t) <= 20 for t in titles), "`--set Title.input=value` reads them"


def test_clips_and_models_ship_or_the_loader_knows_where_they_are(api):
    for node in api.values():
        if node["class_type"] == "LoadVideo":
            assert (FOLDER / node["inputs"]["file"]).stat().st_size < 1_000_000
        if node["class_type"] == "WeftLoadModel":
            toy = node["inputs"]["model"].removeprefix("toyworld/")
            assert (ROOT / "toyworld" / "weights" / toy / "model_index.json").is_file() or toy in KNOWN
        if node["class_type"] == "WeftLoadAnimateDiff":
            assert {node["inputs"]["model"], node["inputs"]["motion_module"]} <= set(KNOWN)
        if node["class_type"] in SHIPPED:
            assert node["inputs"]["model"].startswith("toyworld/")
            assert (ROOT / "toyworld" / "weights" / SHIPPED[node["class_type"]]).is_file()


def test_a_card_says_what_it_does(name):
    """ComfyUI shows nothing else of it but its file name."""
    title, text = CARDS[name]
    assert len(title) <= 27
    assert text.endswith(".")
    with Image.open(FOLDER / f"{name}.jpg") as card:
        assert card.size == (SIDE, SIDE)
    assert (FOLDER / f"{name}.jpg").stat().st_size < 50_000


def test_a_card_shows_the_graph_alone_where_the_model_does_not_ship(name, api):
    models = [node["inputs"].get("model", "") for node in api.values() if node["class_type"].startswith("WeftLoad")]
    ships = bool(models) and all(str(model).startswith("toyworld/") for model in models)
    assert shows_its_graph(name) != ships


def test_is_what_the_build_says(name, api):
    """Fails after a change of a graph without a rebuild."""
    built = {node["_meta"]["title"]: node for node in api.values()}
    wanted = {title: node for column in GRAPHS[name].values() for title, node in column.items()}
    assert set(built) == {title for title, node in wanted.items() if node["type"] not in NOTES}
    for title, node in wanted.items():
        if node["type"] in NOTES:
            continue
        assert built[title]["class_type"] == node["type"]
        for entry, value in ((e, v) for e, v in node["inputs"].items() if e not in BROWSERS):
            got = built[title]["inputs"][entry]
            if isinstance(value, dict):
                assert api[got[0]]["_meta"]["title"] == value["title"]
            else:
                assert got == value, f"{title}.{entry}: rebuild the workflows"


def test_an_edited_video_keeps_the_sound_of_its_source(name, api):
    made = [node["inputs"] for node in api.values() if node["class_type"] == "CreateVideo"]
    shown_as_pictures = name.startswith("mask_")  # masks, to be looked at
    assert all(("audio" in inputs) != shown_as_pictures for inputs in made)
    for inputs in made:
        source = api[inputs["fps"][0]]
        assert source["class_type"] == "GetVideoComponents"
        assert shown_as_pictures or inputs["audio"] == [inputs["fps"][0], 1]
