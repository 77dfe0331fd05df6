import pytest

from weft.headless.graph import changed, find_node, is_link, read_graph

GRAPH = {
    "1": {"class_type": "Load", "inputs": {"file": "a.mp4"}, "_meta": {"title": "Source"}},
    "2": {"class_type": "Text", "inputs": {"text": "5", "model": ["1", 0]}, "_meta": {"title": "Prompt v1.0"}},
    "3": {"class_type": "Text", "inputs": {"text": "b"}},
    "4": {"class_type": "Sample", "inputs": {"strength": 0.1, "fast": False}},
}


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("4.strength", "0.3", 0.3),
        ("4.strength", 2, 2),
        ("Sample.fast", "true", True),
        ("2.text", "7", "7"),
        ("Prompt v1.0.text", "a cat. a dog", "a cat. a dog"),
        ("Source.file", "b.mp4", "b.mp4"),
    ],
)
def test_changes(name, value, expected):
    new = changed(GRAPH, {name: value})
    node, _, field = name.rpartition(".")
    got = new[find_node(GRAPH, node)]["inputs"][field]
    assert got == expected
    assert type(got) is type(expected)
    assert GRAPH["4"]["inputs"] == {"strength": 0.1, "fast": False}  # the original stays


@pytest.mark.parametrize(
    ("name", "value", "complaint"),
    [
        ("Nowhere.text", "a", "no node 'Nowhere'.*'Source' \\(1\\)"),
        ("Text.text", "a", "several nodes.*2, 3"),
        ("4.power", "1", "no input 'power': it has strength, fast"),
        ("4.strength", "much", "'much' is no such value"),
        ("2.model", "a", "is wired"),
        ("strength", "1", "no node ''"),
    ],
)
def test_changes_that_do_not_fit(name, value, complaint):
    with pytest.raises(ValueError, match=complaint):
        changed(GRAPH, {name: value})


def test_a_canvas_workflow_is_not_taken_for_a_graph(tmp_path):
    (tmp_path / "ui.json").write_text('{"nodes": [], "links": [], "version": 0.4}')
    with pytest.raises(ValueError, match="API format"):
        read_graph(tmp_path / "ui.json")


def test_a_list_of_numbers_is_no_link():
    assert is_link(["1", 0])
    assert not is_link([1, 0])
    assert not is_link(["1", 0, 2])
