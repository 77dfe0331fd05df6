"""Every node explains itself: in the palette, at each input, and on a page of its own."""

import re

import pytest

from weft.tests.conftest import ROOT
from weft.tests.schemas import schemas

PAGES = ROOT / "web" / "docs"


@pytest.fixture(params=schemas())
def schema(request):
    return schemas()[request.param]


def test_description_and_tooltips(schema):
    assert schema.description.endswith(".")
    untold = [slot.name for slot in schema.inputs if not slot.details.get("tooltip", "").endswith(".")]
    assert not untold, f"no tooltip, or no whole sentence, at {untold}"


def test_page_names_every_input_and_output(schema):
    text = (PAGES / f"{schema.node_id}.md").read_text()
    assert text.startswith(f"# {schema.display_name.removesuffix(' (Weft)')}\n")
    rows = re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)
    assert sorted(rows) == sorted(s.name for s in (*schema.inputs, *schema.outputs))


def test_page_gives_every_choice_and_default(schema):
    text, _, _ = (PAGES / f"{schema.node_id}.md").read_text().partition("\n| output |")  # an output may share a name
    for slot in (s for s in schema.inputs if s.is_widget and s.name != "model"):
        (row,) = re.findall(rf"^\| `{slot.name}` \|.*$", text, re.MULTILINE)
        absent = [choice for choice in slot.details.get("options", ()) if f"`{choice}`" not in row]
        assert not absent, f"{slot.name}: the page does not mention {absent}"
        if slot.type in ("INT", "FLOAT"):
            numbers = [float(n) for n in re.findall(r"-?\d+(?:\.\d+)?", row)]
            assert slot.details["default"] in numbers, f"{slot.name}: the page does not give the default"


def test_no_page_without_a_node():
    assert sorted(p.stem for p in PAGES.glob("*.md")) == sorted(schemas())
