"""The workflow for several machines on two servers, through ComfyUI-Distributed, where a checkout of it is.

Named by COMFYUI_DISTRIBUTED_PATH, or in its usual place.
"""

import io
import json
import shutil
from contextlib import ExitStack

import numpy as np
import pytest
from PIL import Image

from weft.headless.client import WorkflowError, main
from weft.headless.distributed import (
    Distributed,
    alive,
    find_distributed,
    for_workers,
    install_distributed,
    run_distributed,
)
from weft.headless.graph import changed, read_graph
from weft.headless.server import comfyui_server
from weft.tests.conftest import ROOT
from weft.toyworld import clip

pytestmark = pytest.mark.comfy
API = ROOT / "workflows" / "api"
TIMEOUT = 20  # seconds that the master waits for a silent worker
FEW_STEPS = {"Noise.steps": 2}


@pytest.fixture(scope="module")
def cluster(comfyui, tmp_path_factory):
    """(master, worker): the master is told of the worker and of one that is not there; it alone has the clip."""
    found = find_distributed()
    if found is None:
        pytest.skip("NOT TESTED ON SEVERAL MACHINES: set COMFYUI_DISTRIBUTED_PATH to a checkout of ComfyUI-Distributed")
    with ExitStack() as running:
        servers = []
        for name in ("master", "worker"):
            base = tmp_path_factory.mktemp(name)
            install_distributed(found, base)
            shutil.copytree(ROOT / "toyworld" / "weights" / "instruct", base / "models" / "diffusers" / f"{name}s-own")
            servers.append(running.enter_context(comfyui_server(comfyui, base, arguments=["--cpu"])))
        master, worker = servers
        master.upload(clip.CLIP)
        port = int(worker.url.rsplit(":", 1)[1])
        for number, at, name in (("1", 9, "gone"), ("2", port, "worker")):
            told = {"worker_id": number, "name": name, "host": "127.0.0.1", "port": at, "cuda_device": 0}
            master.request("/distributed/config/update_worker", told | {"enabled": True, "type": "remote"})
        settings = {"worker_timeout_seconds": TIMEOUT, "websocket_orchestration": False}
        master.request("/distributed/config", {"settings": settings})
        yield master, worker


def shown(graph):
    """The workflow with the merged frames as pictures."""
    merge = next(i for i, node in graph.items() if node["class_type"] == "WeftChunkMerge")
    return {**graph, "shown": {"class_type": "PreviewImage", "inputs": {"images": [merge, 0]}}}


def pictures(result):
    return np.stack([np.asarray(Image.open(io.BytesIO(result.fetch(f)))) for f in result.files("shown")])


def shared(**changes):
    return shown(changed(read_graph(API / "via_long_distributed.json"), FEW_STEPS | changes))


def test_workers_that_are_not_there_are_left_out(cluster):
    master, _ = cluster
    assert [w.name for w in alive(master)] == ["worker"]


def test_two_machines_give_the_edit_of_one(cluster):
    master, _ = cluster
    one = pictures(master.run(shown(changed(read_graph(API / "via_long.json"), FEW_STEPS))))
    both = pictures(run_distributed(master, shared()))
    assert both.shape == one.shape
    apart = np.abs(both.astype(int) - one)
    assert apart[: len(one) // 2].max() == 0  # the master's own part
    assert apart.max() <= 1  # the worker's came as 8 bits, and was rounded down


def test_a_part_that_no_worker_has_is_named(cluster):
    master, _ = cluster
    workers = alive(master)
    graph = for_workers(shared(), len(workers) + 1)
    with pytest.raises(WorkflowError, match="no part 2 of 3"):
        master.run(graph, queue=Distributed(workers))


def test_a_worker_that_fails_is_named_and_its_log_is_printed(cluster, tmp_path):
    master, _ = cluster
    (tmp_path / "graph.json").write_text(json.dumps(shared(**{"Model.model": "masters-own"})))
    with pytest.raises(SystemExit) as failure:
        main([str(tmp_path / "graph.json"), "--server", master.url, "--distributed"])
    told = str(failure.value)
    assert "could not share out the workflow" in told  # the worker refuses it before anything runs
    assert "--- worker, part 1 ---" in told
    assert "no model 'masters-own'" in told


def test_a_workflow_that_cannot_be_shared_out_is_refused(cluster):
    master, _ = cluster
    with pytest.raises(ValueError, match="as via_long_distributed: this has 1 plans"):
        run_distributed(master, read_graph(API / "via_long.json"))


def test_a_server_without_it_says_so(server):
    with pytest.raises(WorkflowError, match="has no ComfyUI-Distributed"):
        alive(server)
