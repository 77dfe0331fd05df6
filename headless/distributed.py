"""A workflow on several machines, through ComfyUI-Distributed on the master: who is there, and what a worker says.

    python -m weft.headless.client workflows/api/via_long_distributed.json --distributed --out edit.mp4

Only the master is spoken to; it speaks to its workers.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from .connection import Interrupted, Listen, Refused, Result, Server, WorkflowError
from .graph import Graph, with_inputs
from .parts import COLLECTOR, PLAN

USUAL = Path.home() / "comfy" / "ComfyUI-Distributed"
LOG_LINES = 15
NO_LOG = "no log:"
ATTEMPTS = 3  # of the master to reach a worker, 5 seconds each


@dataclass(frozen=True)
class Worker:
    id: str
    name: str
    local: bool  # on the master's machine, without a host of its own


def find_distributed() -> Path | None:
    """A checkout of ComfyUI-Distributed: `COMFYUI_DISTRIBUTED_PATH`, or in its usual place."""
    named = os.environ.get("COMFYUI_DISTRIBUTED_PATH")
    folder = Path(named) if named else USUAL
    return folder if (folder / "distributed.py").is_file() else None


def install_distributed(found: Path, base: Path) -> None:
    """Copies it into a server's folder; a copy, as it writes its settings beside its code."""
    target = base / "custom_nodes" / "ComfyUI-Distributed"
    shutil.copytree(found, target, ignore=shutil.ignore_patterns(".git", "gpu_config.json"))


def alive(server: Server) -> list[Worker]:
    """The enabled workers that answer the master, in its order.

    Raises:
        WorkflowError: the master cannot be reached, or has no ComfyUI-Distributed.
    """
    try:
        config = json.loads(server.request("/distributed/config"))
    except Refused as error:
        raise WorkflowError(f"{server.url} has no ComfyUI-Distributed: install it there ({error})") from None
    enabled = [w for w in config.get("workers", []) if w.get("enabled")]
    workers = [
        Worker(
            str(w["id"]), w.get("name") or str(w["id"]), not (w.get("host") or "").strip() or w.get("type") == "local"
        )
        for w in enabled
    ]
    statuses = json.loads(server.request("/distributed/local-worker-status")).get("worker_statuses", {})
    return [w for w in workers if _answers(server, w, statuses)]


def for_workers(graph: Graph, count: int) -> Graph:
    """The graph for so many workers and the master.

    Raises:
        ValueError: it has not one Chunk Plan, or no collector.
    """
    plans = [i for i, node in graph.items() if node["class_type"] == PLAN]
    if len(plans) != 1 or not any(node["class_type"] == COLLECTOR for node in graph.values()):
        raise ValueError(
            f"want a workflow with one {PLAN} and a {COLLECTOR}, as via_long_distributed: this has {len(plans)} plans"
        )
    return with_inputs(graph, plans[0], count=count + 1)


@dataclass
class Distributed:
    """Queues a graph for the master and these workers. See `Server.run`."""

    workers: list[Worker]

    def __call__(self, server: Server, graph: Graph, client: str) -> str:
        asked = {"prompt": graph, "client_id": client, "enabled_worker_ids": [w.id for w in self.workers]}
        try:
            reply = json.loads(server.request("/distributed/queue", asked))
        except Refused as error:
            told = error.reply.decode(errors="replace")[:500]
            raise WorkflowError(f"the master could not share out the workflow: {told}") from None
        if reply["worker_count"] != len(self.workers):
            server.interrupt()
            raise WorkflowError(
                f"{reply['worker_count']} of {len(self.workers)} workers took a part: look at the others, and run again"
            )
        return reply["prompt_id"]

    def logs(self, server: Server) -> str:
        """The end of every worker's log."""
        return "\n".join(f"--- {w.name}, part {i} ---\n{log(server, w)}" for i, w in enumerate(self.workers, 1))


def run_distributed(server: Server, graph: Graph, listen: Listen = lambda kind, data: None) -> Result:
    """Runs a graph on the master and on all workers that are alive; if it fails, their logs come with the reason.

    Raises:
        ValueError: the graph cannot be shared out.
        WorkflowError: as in `Server.run`, or a worker did not do its part.
    """
    workers = alive(server)
    print(f"{len(workers)} workers: {', '.join(w.name for w in workers) or 'the master is alone'}", file=sys.stderr)
    together = Distributed(workers)
    try:
        return server.run(for_workers(graph, len(workers)), listen, queue=together)
    except Interrupted:
        raise
    except WorkflowError as error:
        raise WorkflowError(f"{error}\n{together.logs(server)}") from error


def log(server: Server, worker: Worker, lines: int = LOG_LINES) -> str:
    """The last lines of a worker's log, or why there are none."""
    kind = "worker_log" if worker.local else "remote_worker_log"
    try:
        told = json.loads(server.request(f"/distributed/{kind}/{worker.id}", query={"lines": str(lines)}))
        return "\n".join(str(told.get("content", "")).splitlines()[-lines:])
    except (WorkflowError, ValueError) as error:
        return f"{NO_LOG} {error}"


def _answers(server: Server, worker: Worker, statuses: Mapping[str, dict]) -> bool:
    """Asked several times, as one that is at work may take long."""
    if worker.id in statuses and worker.local:
        return bool(statuses[worker.id].get("online"))
    return any(not log(server, worker, 1).startswith(NO_LOG) for _ in range(ATTEMPTS))
