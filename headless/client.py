"""Queue a workflow on a running ComfyUI with changed inputs, wait, and fetch what it made.

    python -m weft.headless.client workflows/api/str_match.json --upload workflows/toy_clip.mp4 \\
        --set "Target prompt.text=a red square on a teal striped background" --set "STR-Match.strength=0.3" \\
        --out edit.mp4

or from Python, with the standard library alone:

    result = run_workflow(LOCAL, "workflows/api/str_match.json", {"STR-Match.strength": 0.3}, ["my_clip.mp4"])
    data = result.fetch(result.files()[0])
"""

from __future__ import annotations

import argparse
import json
import sys
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlencode
from urllib.request import Request, urlopen

from .graph import Graph, changed, read_graph, title
from .progress import Progress
from .websocket import Listener

LOCAL = "http://127.0.0.1:8188"
Listen = Callable[[str, dict], None]


class WorkflowError(RuntimeError):
    """The server refused or failed to run a workflow; the message says why in plain words."""


class Interrupted(WorkflowError):
    """Somebody cancelled the workflow."""


@dataclass
class Result:
    """What a workflow left behind."""

    server: Server
    outputs: dict[str, dict] = field(default_factory=dict)  # node id -> what it shows: files, texts
    cached: set[str] = field(default_factory=set)  # ids of nodes that did not have to run

    def files(self, node: str | None = None) -> list[dict]:
        """The files of one node, or of all: {"filename", "subfolder", "type"} each."""
        shown = [self.outputs.get(node, {})] if node else list(self.outputs.values())
        items = [item for output in shown for value in output.values() for item in value or ()]
        return [item for item in items if isinstance(item, dict) and "filename" in item]

    def fetch(self, file: dict) -> bytes:
        """The bytes of one of `files`."""
        query = urlencode({key: file.get(key, "") for key in ("filename", "subfolder", "type")})
        return self.server.request(f"/view?{query}")


@dataclass(frozen=True)
class Server:
    """A running ComfyUI."""

    url: str = LOCAL

    def request(self, path: str, body: Any = None, kind: str = "application/json") -> bytes:
        """GET, or POST where there is a body: bytes, or anything that JSON can hold."""
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        with urlopen(Request(self.url.rstrip("/") + path, data, {"Content-Type": kind} if data else {})) as reply:
            return reply.read()

    def upload(self, path: Path | str) -> None:
        """Puts a file into the server's input folder, under its own name; one that is there is replaced."""
        path, boundary = Path(path), uuid.uuid4().hex
        head = f'Content-Disposition: form-data; name="image"; filename="{path.name}"'
        over = 'Content-Disposition: form-data; name="overwrite"\r\n\r\ntrue'
        body = f"--{boundary}\r\n{over}\r\n--{boundary}\r\n{head}\r\n\r\n".encode()
        body += path.read_bytes() + f"\r\n--{boundary}--\r\n".encode()
        self.request("/upload/image", body, f"multipart/form-data; boundary={boundary}")

    def interrupt(self) -> None:
        """Cancels what is running."""
        self.request("/interrupt", {})

    def run(self, graph: Graph, listen: Listen = lambda kind, data: None, patience: float | None = None) -> Result:
        """Queues a graph and waits until it is done.

        Args:
            listen: called with every event about this graph, such as ("progress", {"value", "max", "node"}).
            patience: seconds of silence to bear; None is for ever.

        Raises:
            WorkflowError: the server cannot be reached, refuses the graph, or a node failed.
        """
        client = uuid.uuid4().hex
        try:
            with Listener(f"{self.url.rstrip('/').replace('http', 'ws', 1)}/ws?clientId={client}", patience) as socket:
                queued = self.request("/prompt", {"prompt": graph, "client_id": client})
                return self._follow(socket, json.loads(queued)["prompt_id"], graph, listen)
        except HTTPError as error:
            raise WorkflowError(_refusal(graph, error.read())) from None
        except OSError as error:
            raise WorkflowError(f"{self.url}: {error or 'no answer'}") from error

    def _follow(self, socket: Iterable[str], prompt: str, graph: Graph, listen: Listen) -> Result:
        result, failure = Result(self), None
        for kind, data in _events(socket):
            if kind != "status" and data.get("prompt_id") != prompt:
                continue  # somebody else's
            listen(kind, data)
            if kind == "execution_cached":
                result.cached.update(data["nodes"])
            elif kind == "executed":
                result.outputs[data["node"]] = data["output"] or {}
            elif kind == "execution_error":
                failure = WorkflowError(f"{_name(graph, data['node_id'])}: {data['exception_message'].strip()}")
            elif kind == "execution_interrupted":
                failure = Interrupted(f"cancelled at {_name(graph, data['node_id'])}")
            elif kind == "executing" and data["node"] is None:  # the last word on a graph, whatever became of it
                break
        if failure:
            raise failure
        return result


def run_workflow(
    server: str,
    workflow: Path | str | Graph,
    changes: Mapping[str, Any] | None = None,
    uploads: Iterable[Path | str] = (),
    listen: Listen = lambda kind, data: None,
) -> Result:
    """Runs an API-format workflow on a running server.

    Args:
        server: its address, such as "http://127.0.0.1:8188".
        workflow: a file, or its content.
        changes: {"node title or id.input": value}.
        uploads: files for the server's input folder; inputs refer to them by file name.
        listen: called with every event.

    Raises:
        ValueError: the workflow cannot be read, or a change does not fit it.
        WorkflowError: the server cannot be reached, refuses the workflow, or a node failed.
    """
    graph = changed(workflow if isinstance(workflow, dict) else read_graph(workflow), changes or {})
    running = Server(server)
    try:
        for file in uploads:
            running.upload(file)
    except OSError as error:
        raise WorkflowError(f"cannot upload {file}: {error}") from error
    return running.run(graph, listen)


def _events(socket: Iterable[str]) -> Iterator[tuple[str, dict]]:
    for text in socket:
        message = json.loads(text)
        yield message["type"], message.get("data") or {}


def _name(graph: Graph, node: str) -> str:
    return f"{title(graph, node)} (node {node})" if node in graph else f"node {node}"


def _refusal(graph: Graph, reply: bytes) -> str:
    """A rejected graph in words, one line a complaint."""
    try:
        answer = json.loads(reply)
        complaints = [
            f"{_name(graph, node)}: {error['message']} ({error['details']})"
            for node, report in (answer.get("node_errors") or {}).items()
            for error in report["errors"]
        ]
        return "\n".join(complaints) or f"{answer['error']['message']} {answer['error']['details']}".strip()
    except (ValueError, KeyError, TypeError):
        return f"the server refused the workflow: {reply.decode(errors='replace')[:500]}"


def _save(result: Result, out: Path) -> None:
    """All files into a folder, or the one of this suffix into a file."""
    files = [f for f in result.files() if f.get("type") == "output"] or result.files()
    if not out.suffix:
        out.mkdir(parents=True, exist_ok=True)
        chosen = [(file, out / file["filename"]) for file in files]
    else:
        chosen = [(file, out) for file in files if Path(file["filename"]).suffix == out.suffix]
        if len(chosen) != 1:
            raise WorkflowError(f"the workflow made {len(chosen)} files '{out.suffix}': give --out a folder")
    for file, path in chosen:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(result.fetch(file))
        print(path)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("workflow", type=Path, help="a workflow in API format")
    parser.add_argument("--server", default=LOCAL, help="default: %(default)s")
    parser.add_argument("--set", action="append", default=[], metavar="NODE.INPUT=VALUE", help="title or id of a node")
    parser.add_argument("--upload", action="append", default=[], metavar="FILE", help="into the server's input folder")
    parser.add_argument("--out", type=Path, help="a file, or a folder for several")
    options = parser.parse_args(arguments)
    changes = dict(item.split("=", 1) if "=" in item else parser.error(f"no '=' in {item}") for item in options.set)
    try:
        graph = read_graph(options.workflow)
        result = run_workflow(options.server, graph, changes, options.upload, Progress(graph))
        texts = (text for output in result.outputs.values() for text in output.get("text", ()))
        for text in dict.fromkeys(texts):  # a node's figures and the node that shows them say the same
            print(text)
        if options.out:
            _save(result, options.out)
    except (WorkflowError, ValueError, OSError) as error:
        sys.exit(f"{error}")


if __name__ == "__main__":
    main()
