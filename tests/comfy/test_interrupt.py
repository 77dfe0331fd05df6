"""Cancel works at once, wherever the run is, and leaves nothing behind."""

import pytest

from weft.headless.client import Interrupted
from weft.tests.comfy.graphs import node, plain, str_match

pytestmark = pytest.mark.comfy
LONG = 60  # steps: many times what passes until a cancel arrives
EVALUATION = "weft_test_evaluation"  # see counting_node.py
RUNS = {
    "inversion": (plain, "invert"),
    "guidance": (str_match, "sample"),
    "sampling": (plain, "sample"),
}


def counted(graph, at):
    """The graph, telling of the network evaluations in one of its nodes."""
    inputs = graph[at]["inputs"]
    graph["count"] = node("CountEvaluations", **{"plan": inputs["plan"]} if "plan" in inputs else {})
    inputs["plan"] = ["count", 0]
    return graph


class Cancel:
    """Cancels once a node has made some steps, and counts the evaluations that begin nevertheless."""

    def __init__(self, server, at):
        self.server, self.at = server, at
        self.before = self.after = 0
        self.sent = self.arrived = False

    def __call__(self, kind, data):
        if kind == EVALUATION:
            self.before, self.after = self.before + (not self.arrived), self.after + self.arrived
        elif self.sent and kind == "status":
            self.arrived = True
        elif not self.sent and kind == "progress" and data["node"] == self.at and data["value"] >= 3:
            self.sent = True
            self.server.interrupt()
            # Events come in the order they were sent: the one that this causes divides before from after.
            self.server.request("/queue", {"clear": True})


@pytest.mark.parametrize(("graph", "at"), RUNS.values(), ids=RUNS)
def test_cancel_stops_within_a_step(editor, graph, at):
    before = editor(graph())
    cancel = Cancel(editor.server, at)
    with pytest.raises(Interrupted, match=at):
        editor(counted(graph(steps=LONG), at), cancel)
    assert cancel.arrived
    assert cancel.before >= 3
    assert cancel.after <= 1
    after = editor(graph())
    assert after.ran >= {"invert", "sample"}
    assert after.bits == before.bits
