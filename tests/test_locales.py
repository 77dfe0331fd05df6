"""Every node, input and output has a name and a tooltip in each language that ships, and so has every category."""

import json
import re

import pytest

from weft.tests.conftest import ROOT
from weft.tests.schemas import schemas

FILES = sorted((ROOT / "locales").glob("*/nodeDefs.json"))
CHINESE = re.compile(r"[\u4e00-\u9fff]")
OF_CORE = {"Weft", "mask"}  # a name, and a category that ComfyUI's own pages have in every language


@pytest.fixture(params=FILES, ids=lambda path: path.parent.name)
def told(request):
    return json.loads(request.param.read_text(encoding="utf-8"))


def test_a_language_ships():
    assert [path.parent.name for path in FILES] == ["zh"]


@pytest.mark.parametrize("node_id", schemas())
def test_no_key_is_missing_and_none_is_stale(told, node_id):
    schema, said = schemas()[node_id], told.get(node_id, {})
    assert set(said) == {"display_name", "description", "inputs", "outputs"}
    assert said["display_name"].endswith(" (Weft)")
    assert CHINESE.search(said["description"])
    assert list(said["inputs"]) == [slot.name for slot in schema.inputs]
    assert list(said["outputs"]) == [str(i) for i in range(len(schema.outputs))]
    for slot in (*said["inputs"].values(), *said["outputs"].values()):
        assert set(slot) == {"name", "tooltip"}
        assert slot["name"]
        assert CHINESE.search(slot["tooltip"])


@pytest.mark.parametrize("node_id", schemas())
def test_numbers_and_choices_of_a_tooltip_are_those_of_the_english_one(told, node_id):
    """What a translation cannot get wrong unseen, and what shows that it is older than its original."""
    schema = schemas()[node_id]
    for side, names in (("inputs", [s.name for s in schema.inputs]), ("outputs", map(str, range(len(schema.outputs))))):
        for name, slot in zip(names, getattr(schema, side)):
            tip, said = slot.details["tooltip"], told[node_id][side][name]["tooltip"]
            assert set(numbers(tip)) == set(numbers(said)), name
            absent = [
                c for c in slot.details.get("options", ()) if isinstance(c, str) and f"{c}:" in tip and c not in said
            ]
            assert not absent, name


def numbers(text):
    return re.findall(r"\d+(?:\.\d+)?", text)


def test_nothing_is_told_of_nodes_that_are_not_there(told):
    assert set(told) <= set(schemas())


def test_categories_are_few_and_have_names():
    parts = {part for schema in schemas().values() for part in schema.category.split("/")}
    said = json.loads((ROOT / "locales" / "zh" / "main.json").read_text(encoding="utf-8"))["nodeCategories"]
    assert parts == set(said) | OF_CORE
    assert all(sum(s.category == c for s in schemas().values()) > 1 for c in {s.category for s in schemas().values()})
