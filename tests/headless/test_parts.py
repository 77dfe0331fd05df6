"""A workflow in chunks as one job a part, and the clip of the parts."""

import pytest

from weft.headless.graph import read_graph
from weft.headless.parts import merged, one_part, read_part
from weft.tests.conftest import ROOT

API = ROOT / "workflows" / "api"


def kinds(graph):
    return {node["class_type"]: node["inputs"] for node in graph.values()}


@pytest.mark.parametrize("name", ["via_long", "via_long_distributed"])
def test_a_part_is_edited_and_saved_and_nothing_else_runs(name):
    graph = read_graph(API / f"{name}.json")
    before = read_graph(API / f"{name}.json")
    part = kinds(one_part(graph, 2, 4, "cat"))
    assert graph == before
    assert part["WeftChunkPlan"]["count"] == 4
    assert part["WeftChunkSelect"]["index"] == 2
    saved = part["WeftSavePart"]
    assert graph[saved["images"][0]]["class_type"] == "WeftDecodeFrames"
    assert graph[saved["chunk"][0]]["class_type"] == "WeftChunkSelect"
    assert saved["name"] == "cat"
    left = {"WeftChunkMerge", "WeftChunkStamp", "DistributedCollector", "DistributedSeed", "SaveVideo", "CreateVideo"}
    assert not left & set(part)


@pytest.mark.parametrize("name", ["via_long", "via_long_distributed"])
def test_the_clip_is_made_of_files_in_place_of_the_edit(name):
    graph = read_graph(API / f"{name}.json")
    whole = merged(graph, 4, "cat")
    (parts,) = [i for i, node in whole.items() if node["class_type"] == "WeftLoadParts"]
    assert graph[parts]["class_type"] == "WeftChunkMerge"
    assert kinds(whole)["WeftChunkPlan"]["count"] == 4
    assert kinds(whole)["CreateVideo"]["images"] == [parts, 0]
    assert whole[whole[parts]["inputs"]["chunks"][0]]["class_type"] == "WeftChunkPlan"
    assert "WeftEditSampler" not in kinds(whole)
    assert "WeftEvaluateEdit" in kinds(whole)


def test_what_shows_the_edit_of_a_part_is_not_run_for_the_clip():
    graph = read_graph(API / "via_long.json")
    (sample,) = [i for i, node in graph.items() if node["class_type"] == "WeftEditSampler"]
    graph["extra"] = {"class_type": "SaveLatent", "inputs": {"samples": [sample, 0]}}
    assert not {"SaveLatent", "WeftEditSampler"} & set(kinds(merged(graph, 2, "cat")))


def test_another_workflow_is_refused():
    graph = read_graph(API / "str_match.json")
    for make in (lambda: one_part(graph, 0, 2, "cat"), lambda: merged(graph, 2, "cat")):
        with pytest.raises(ValueError, match=r"want a workflow with one each of .* as via_long: this has 0"):
            make()


def test_reading_a_part():
    assert read_part("0/4") == (0, 4)
    assert read_part(" 3 / 4 ") == (3, 4)
    for text in ("4/4", "1", "a/b", "-1/4", "1/0", "1/4/2", ""):
        with pytest.raises(ValueError, match="want a part of how many, from 0, as in 0/4"):
            read_part(text)
