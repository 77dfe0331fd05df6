"""Reading and changing a workflow in API format: {node id: {"class_type", "inputs", "_meta": {"title"}}}."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

Graph = dict[str, dict[str, Any]]


def read_graph(path: Path | str) -> Graph:
    """Reads an API-format workflow.

    Raises:
        ValueError: the file is something else, such as a workflow saved for the canvas.
    """
    graph = json.loads(Path(path).read_text(encoding="utf-8"))
    if not isinstance(graph, dict) or not all(isinstance(n, dict) and "class_type" in n for n in graph.values()):
        raise ValueError(f"{path} is not in API format: save it with File > Export (API)")
    return graph


def changed(graph: Graph, changes: Mapping[str, Any]) -> Graph:
    """A copy of `graph` with other values for some inputs.

    Args:
        changes: {"node.input": value}, where node is an id, a title, or a class that occurs once. Text for an input
            that holds a number or a switch is read as JSON.

    Raises:
        ValueError: no such node or input, several that answer to the name, or an input that is wired.
    """
    graph = copy.deepcopy(graph)
    for name, value in changes.items():
        node, _, field = name.rpartition(".")
        inputs = graph[find_node(graph, node)]["inputs"]
        if field not in inputs:
            raise ValueError(f"'{node}' has no input '{field}': it has {', '.join(inputs)}")
        if is_link(inputs[field]):
            raise ValueError(f"'{name}' is wired to another node, so it has no value of its own")
        inputs[field] = _as_kind(inputs[field], value, name)
    return graph


def find_node(graph: Graph, name: str) -> str:
    """The id of the node with this id, title or class.

    Raises:
        ValueError: there is none, or more than one.
    """
    if name in graph:
        return name
    for found in (
        [i for i, node in graph.items() if node.get("_meta", {}).get("title") == name],
        [i for i, node in graph.items() if node["class_type"] == name],
    ):
        if len(found) == 1:
            return found[0]
        if found:
            raise ValueError(f"several nodes are called '{name}': use one of the ids {', '.join(found)}")
    titles = ", ".join(f"'{title(graph, i)}' ({i})" for i in graph)
    raise ValueError(f"no node '{name}' in this workflow: it has {titles}")


def title(graph: Graph, node: str) -> str:
    """What the node is called on the canvas."""
    return graph[node].get("_meta", {}).get("title") or graph[node]["class_type"]


def with_inputs(graph: Graph, node: str, **inputs: Any) -> Graph:
    """The graph with other inputs of a node, whatever they were before: values or wires."""
    return {**graph, node: {**graph[node], "inputs": {**graph[node]["inputs"], **inputs}}}


def is_link(value: Any) -> bool:
    """Whether an input is wired to another node's output, [id, output]."""
    return isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) and isinstance(value[1], int)


def _as_kind(old: Any, new: Any, name: str) -> Any:
    if not isinstance(new, str) or isinstance(old, str):
        return new
    try:
        return json.loads(new)
    except ValueError:
        raise ValueError(f"'{name}' holds {json.dumps(old)}, and '{new}' is no such value") from None
