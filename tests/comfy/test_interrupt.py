"""Cancel works at once, wherever the run is, and leaves nothing behind."""

import pytest

from weft.headless.client import Interrupted
from weft.tests.comfy.graphs import plain, str_match

pytestmark = pytest.mark.comfy
LONG = 100  # steps: many times what passes until a cancel arrives
RUNS = {
    "inversion": (plain, "invert"),
    "guidance": (str_match, "sample"),
    "sampling": (plain, "sample"),
}


class Cancel:
    """Cancels once the node has made some steps, and counts the steps that it makes nevertheless."""

    def __init__(self, server, node):
        self.server, self.node = server, node
        self.sent = self.arrived = False
        self.steps_after = 0

    def __call__(self, kind, data):
        if self.arrived and kind == "progress":
            self.steps_after += 1
        elif self.sent and kind == "status":
            self.arrived = True
        elif not self.sent and kind == "progress" and data["node"] == self.node and data["value"] >= 3:
            self.sent = True
            self.server.interrupt()
            # Events come in the order they were sent: the one that this causes divides before from after.
            self.server.request("/queue", {"clear": True})


@pytest.mark.parametrize(("graph", "node"), RUNS.values(), ids=RUNS)
def test_cancel_stops_within_a_step(editor, graph, node):
    before = editor(graph())
    cancel = Cancel(editor.server, node)
    with pytest.raises(Interrupted, match=node):
        editor(graph(steps=LONG), cancel)
    assert cancel.arrived
    assert cancel.steps_after <= 1
    after = editor(graph())
    assert after.ran >= {"invert", "sample"}
    assert after.bits == before.bits
