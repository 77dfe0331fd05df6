"""What is to be read, on a real server: help pages, pictures, thumbnails and Chinese, where its page looks for them."""

import json

import pytest

from weft.tests.conftest import ROOT
from weft.tests.schemas import schemas
from weft.workflows.build.graphs import GRAPHS

pytestmark = [pytest.mark.comfy, pytest.mark.each_comfyui]


@pytest.mark.parametrize("language", ["en", "zh"])
def test_a_help_page_is_where_it_is_asked_for_first(server, language):
    for node_id in schemas():
        said = server.request(f"/extensions/weft/docs/{node_id}/{language}.md").decode()
        assert said == (ROOT / "web" / "docs" / node_id / f"{language}.md").read_text(encoding="utf-8")
        assert server.request(f"/extensions/weft/docs/pictures/{node_id}.webp").startswith(b"RIFF")


def test_in_other_languages_it_is_where_it_is_asked_for_next(server):
    for node_id in schemas():
        assert server.request(f"/extensions/weft/docs/{node_id}.md").decode().startswith("# ")


def test_every_template_has_its_thumbnail(server):
    assert sorted(json.loads(server.request("/workflow_templates"))["weft"]) == sorted(GRAPHS)
    for name in GRAPHS:
        assert server.request(f"/api/workflow_templates/weft/{name}.jpg").startswith(b"\xff\xd8")


def test_nodes_and_categories_are_told_in_chinese(server):
    told = json.loads(server.request("/i18n"))["zh"]
    for name in ("nodeDefs", "main"):
        shipped = json.loads((ROOT / "locales" / "zh" / f"{name}.json").read_text(encoding="utf-8"))
        got = told["nodeDefs"] if name == "nodeDefs" else told
        assert all(got[key] == value for key, value in shipped.items())
