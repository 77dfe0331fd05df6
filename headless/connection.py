"""A running ComfyUI, spoken to over HTTP and its web socket: what it is asked, and what it answers."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import requests
from websocket import WebSocket, WebSocketException, WebSocketTimeoutException, create_connection

from .graph import Graph, title

LOCAL = "http://127.0.0.1:8188"
TIMEOUT = 60.0  # seconds for one answer; a server that loads a model may take a while to get to it
Listen = Callable[[str, dict], None]
Queue = Callable[["Server", Graph, str], str]


class WorkflowError(RuntimeError):
    """The server refused or failed to run a workflow; the message says why in plain words."""


class Refused(WorkflowError):
    """The server answered a request with an error."""

    def __init__(self, message: str, reply: bytes):
        super().__init__(message)
        self.reply = reply


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
        query = {key: file.get(key, "") for key in ("filename", "subfolder", "type")}
        return self.server.request("/view", query=query)


@dataclass(frozen=True)
class Server:
    """A running ComfyUI. What it has no answer to in time, and what it refuses, is a WorkflowError."""

    url: str = LOCAL
    timeout: float = TIMEOUT  # seconds to wait for a connection, and then for each answer

    def __post_init__(self):
        if not self.timeout > 0:
            raise ValueError(f"want a timeout of more than 0 seconds, got {self.timeout:g}")

    def request(
        self,
        path: str,
        body: Any = None,
        *,
        query: Mapping[str, str] | None = None,
        form: Mapping[str, str] | None = None,
        files: Mapping[str, tuple[str, IO[bytes]]] | None = None,
    ) -> bytes:
        """GET, or POST where there is something to send.

        Args:
            body: anything that JSON can hold.
            form, files: fields of a form, and files {"field": ("name", opened)} with it.

        Raises:
            Refused: the server answered with an error.
            WorkflowError: it cannot be reached, or did not answer in time.
        """
        method = "GET" if body is None and form is None and files is None else "POST"
        sent = {"params": query, "json": body, "data": form, "files": files}
        try:
            reply = requests.request(method, self._address(path), timeout=self.timeout, **sent)
        except requests.RequestException as error:
            raise self._unreachable(error) from error
        if not reply.ok:
            raise Refused(f"{self.url} answered {path} with {reply.status_code} {reply.reason}", reply.content)
        return reply.content

    def upload(self, path: Path | str) -> None:
        """Puts a file into the server's input folder, under its own name; one that is there is replaced.

        Raises:
            OSError: there is no such file.
            WorkflowError: see `request`.
        """
        path = Path(path)
        with path.open("rb") as file:
            self.request("/upload/image", form={"overwrite": "true"}, files={"image": (path.name, file)})

    def interrupt(self) -> None:
        """Cancels what is running."""
        self.request("/interrupt", {})

    def run(
        self,
        graph: Graph,
        listen: Listen = lambda kind, data: None,
        patience: float | None = None,
        queue: Queue | None = None,
    ) -> Result:
        """Queues a graph and waits until it is done.

        Args:
            listen: called with every event about this graph, such as ("progress", {"value", "max", "node"}).
            patience: seconds without any event to bear while the server says that it is at work; None is for ever.
            queue: queues it in another way, for a client's id, and returns the graph's: see `distributed.Distributed`.

        Raises:
            WorkflowError: the server cannot be reached, does not answer, refuses the graph, or a node failed.
        """
        client = uuid.uuid4().hex
        address = self._address(f"/ws?clientId={client}").replace("http", "ws", 1)
        try:
            socket = create_connection(address, timeout=self.timeout)
        except (WebSocketException, OSError) as error:
            raise self._unreachable(error) from error
        with closing(socket):
            socket.settimeout(min(self.timeout, patience or self.timeout))
            queued = (queue or Server._queue)(self, graph, client)
            return self._follow(self._messages(socket, queued, patience), queued, graph, listen)

    def _queue(self, graph: Graph, client: str) -> str:
        try:
            return json.loads(self.request("/prompt", {"prompt": graph, "client_id": client}))["prompt_id"]
        except Refused as error:
            raise WorkflowError(_refusal(graph, error.reply)) from None

    def _messages(self, socket: WebSocket, prompt: str, patience: float | None) -> Iterator[str]:
        """The server's messages. When there are none for a while, it is asked whether it is still at work."""
        heard, missing = time.monotonic(), False
        while True:
            try:
                message = socket.recv()
            except WebSocketTimeoutException:
                silence, gone = time.monotonic() - heard, not self._has(prompt)
                if gone and missing:  # the last word may have been under way when it was asked first
                    raise WorkflowError(f"{self.url} no longer knows of this workflow: was it restarted?") from None
                if patience is not None and silence >= patience:
                    raise WorkflowError(f"{self.url} is at work and has said nothing for {silence:.0f} s") from None
                missing = gone
                continue
            except (WebSocketException, OSError) as error:
                raise WorkflowError(f"{self.url} went away ({error})") from error
            if message == "":
                raise WorkflowError(f"{self.url} went away (it closed the connection)")
            heard, missing = time.monotonic(), False
            if isinstance(message, str):  # binary ones are previews
                yield message

    def _has(self, prompt: str) -> bool:
        """Whether a workflow is running or waiting there."""
        queue = json.loads(self.request("/queue"))
        return any(prompt in entry for entries in queue.values() for entry in entries)

    def _address(self, path: str) -> str:
        return self.url.rstrip("/") + path

    def _unreachable(self, error: Exception) -> WorkflowError:
        if isinstance(error, (requests.Timeout, WebSocketTimeoutException, TimeoutError)):
            return WorkflowError(
                f"{self.url} did not answer within {self.timeout:g} s: is that a ComfyUI, and is it well? If it is "
                "only slow, give it longer (--timeout)"
            )
        return WorkflowError(f"{self.url} cannot be reached: is ComfyUI running there? ({error})")

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
