"""What is asked of a master, and what is made of its answers; the real one is tried in `tests/comfy/`."""

import json

import pytest

from weft.headless.connection import Refused, WorkflowError
from weft.headless.distributed import Distributed, Worker, alive, for_workers, log

GRAPH = {
    "1": {"class_type": "WeftChunkPlan", "inputs": {"count": 2, "images": ["0", 0]}},
    "2": {"class_type": "DistributedCollector", "inputs": {}},
}
WORKERS = [
    {"id": "a", "name": "here", "host": "", "enabled": True},
    {"id": "b", "name": "there", "host": "10.0.0.2", "enabled": True},
    {"id": "c", "name": "off", "host": "10.0.0.3", "enabled": False},
    {"id": "d", "host": "10.0.0.4", "enabled": True},
]


class Master:
    """Answers as a master does; paths that it does not know are refused."""

    url = "http://127.0.0.1:1"

    def __init__(self, **answers):
        self.answers = {
            "/distributed/config": {"workers": WORKERS},
            "/distributed/local-worker-status": {"worker_statuses": {"a": {"online": True}, "d": {"online": True}}},
            "/distributed/remote_worker_log/b": {"content": "\n".join(f"line {i}" for i in range(99))},
            **{f"/distributed/{path}": answer for path, answer in answers.items()},
        }
        self.asked, self.interrupted = [], False

    def request(self, path, body=None, **_):
        self.asked.append((path, body))
        if path not in self.answers:
            raise Refused(f"{path}: 404", b"no such worker")
        return json.dumps(self.answers[path]).encode()

    def interrupt(self):
        self.interrupted = True


def test_workers_count_that_are_enabled_and_answer():
    assert alive(Master()) == [Worker("a", "here", True), Worker("b", "there", False)]
    gone = {"local-worker-status": {"worker_statuses": {"a": {"online": False}}}}
    assert alive(Master(**gone)) == [Worker("b", "there", False)]


def test_a_server_without_workers_says_what_it_lacks():
    master = Master()
    del master.answers["/distributed/config"]
    with pytest.raises(WorkflowError, match=r"http://127.0.0.1:1 has no ComfyUI-Distributed: install it there"):
        alive(master)


def test_a_graph_gets_a_part_for_each_worker_and_the_master():
    assert for_workers(GRAPH, 3)["1"]["inputs"] == {"count": 4, "images": ["0", 0]}
    assert GRAPH["1"]["inputs"]["count"] == 2
    for lacking in ("1", "2"):
        with pytest.raises(ValueError, match="want a workflow with one WeftChunkPlan and a DistributedCollector"):
            for_workers({i: node for i, node in GRAPH.items() if i != lacking}, 3)


def test_it_is_queued_for_the_workers_that_were_found():
    master = Master(queue={"prompt_id": "p", "worker_count": 2})
    assert Distributed(alive(master))(master, GRAPH, "me") == "p"
    assert master.asked[-1][1] == {"prompt": GRAPH, "client_id": "me", "enabled_worker_ids": ["a", "b"]}


def test_a_worker_that_went_in_between_stops_the_run():
    master = Master(queue={"prompt_id": "p", "worker_count": 1})
    with pytest.raises(WorkflowError, match="1 of 2 workers took a part"):
        Distributed(alive(master))(master, GRAPH, "me")
    assert master.interrupted


def test_what_the_master_says_is_handed_on():
    with pytest.raises(WorkflowError, match="could not share out the workflow: no such worker"):
        Distributed([])(Master(), GRAPH, "me")


def test_the_end_of_a_log_or_why_there_is_none():
    assert log(Master(), Worker("b", "there", False), 2) == "line 97\nline 98"
    assert log(Master(), Worker("a", "here", True)) == "no log: /distributed/worker_log/a: 404"
    told = Distributed([Worker("b", "there", False)]).logs(Master())
    assert told.startswith("--- there, part 1 ---\nline 84\n")
