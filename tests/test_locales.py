"""Every node, input and output has a name in each language that ships."""

import json

import pytest

from weft.tests.conftest import ROOT
from weft.tests.schemas import schemas

FILES = sorted((ROOT / "locales").glob("*/nodeDefs.json"))


@pytest.fixture(params=FILES, ids=lambda path: path.parent.name)
def told(request):
    return json.loads(request.param.read_text(encoding="utf-8"))


def test_a_language_ships():
    assert [path.parent.name for path in FILES] == ["zh"]


@pytest.mark.parametrize("node_id", schemas())
def test_no_key_is_missing(told, node_id):
    schema, said = schemas()[node_id], told.get(node_id, {})
    assert said.get("display_name", "").endswith(" (Weft)")
    assert said.get("description")
    assert set(said["inputs"]) == {slot.name for slot in schema.inputs}
    assert set(said["outputs"]) == {str(i) for i in range(len(schema.outputs))}
    assert all(slot.get("name") for side in ("inputs", "outputs") for slot in said[side].values())


def test_nothing_is_told_of_nodes_that_are_not_there(told):
    assert set(told) <= set(schemas())
