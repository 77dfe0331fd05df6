"""A workflow for a long clip, part by part: what any scheduler can run, and run again.

    python -m weft.headless.client workflows/api/via_long.json --part 0/4 --out parts/
    python -m weft.headless.client workflows/api/via_long.json --merge 4 --upload parts/... --out edit.mp4

Of a workflow with one Chunk Plan, Chunk Select and Chunk Merge, the one makes a part's edit, the other the clip.
"""

from __future__ import annotations

import re

from .graph import Graph, is_link, with_inputs

PLAN, SELECT, MERGE, COLLECTOR = "WeftChunkPlan", "WeftChunkSelect", "WeftChunkMerge", "DistributedCollector"
ON_THE_WAY = ("WeftChunkStamp", COLLECTOR)  # from an edited part to Chunk Merge


def read_part(text: str) -> tuple[int, int]:
    """ "0/4" -> (0, 4): the first of four parts. ValueError for what is no part."""
    found = re.fullmatch(r"\s*(\d{1,4})\s*/\s*(\d{1,4})\s*", text)
    if not found or not int(found[1]) < int(found[2]):
        raise ValueError(f"want a part of how many, from 0, as in 0/4 to 3/4, got '{text}'")
    return int(found[1]), int(found[2])


def one_part(graph: Graph, index: int, count: int, name: str) -> Graph:
    """The graph that edits a part and saves it under a name.

    Raises:
        ValueError: it has not one Chunk Plan, Chunk Select and Chunk Merge.
    """
    plan, select, merge = _nodes(graph)
    graph = with_inputs(with_inputs(graph, plan, count=count), select, index=index)
    images = graph[merge]["inputs"]["images"]
    while graph[images[0]]["class_type"] in ON_THE_WAY:
        images = graph[images[0]]["inputs"]["images"]
    title = {"_meta": {"title": "Part"}}
    inputs = {"images": images, "chunk": [select, 2], "name": name}
    graph[merge] = {"class_type": "WeftSavePart", "inputs": inputs, **title}
    return _needed(graph, {merge})


def merged(graph: Graph, count: int, name: str) -> Graph:
    """The graph with saved parts in the edit's place.

    Raises:
        ValueError: it has not one Chunk Plan, Chunk Select and Chunk Merge.
    """
    plan, _, merge = _nodes(graph)
    loaded = {"class_type": "WeftLoadParts", "inputs": {"chunks": [plan, 0], "name": name}}
    graph = {**with_inputs(graph, plan, count=count), merge: {**loaded, "_meta": {"title": "Parts"}}}
    shown = {merge}
    while more := {i for i in graph if i not in shown and shown & set(_wired(graph[i]))}:
        shown |= more
    return _needed(graph, shown)


def _nodes(graph: Graph) -> list[str]:
    found = {kind: [i for i, node in graph.items() if node["class_type"] == kind] for kind in (PLAN, SELECT, MERGE)}
    if wrong := [f"{len(nodes)} {kind}" for kind, nodes in found.items() if len(nodes) != 1]:
        raise ValueError(f"want a workflow with one each of {', '.join(found)}, as via_long: this has {wrong[0]}")
    return [nodes[0] for nodes in found.values()]


def _needed(graph: Graph, nodes: set[str]) -> Graph:
    """These nodes and all that they depend on."""
    needed = set(nodes)
    while more := {i for node in needed for i in _wired(graph[node])} - needed:
        needed |= more
    return {i: node for i, node in graph.items() if i in needed}


def _wired(node: dict) -> list[str]:
    return [value[0] for value in node["inputs"].values() if is_link(value)]
