"""The client against a server of a few lines that answers as ComfyUI does."""

import base64
import hashlib
import json
import socket
import struct
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from weft.headless import client
from weft.headless.client import Interrupted, Result, Server, WorkflowError, run_workflow
from weft.headless.progress import Progress

GRAPH = {"7": {"class_type": "Save", "inputs": {"strength": 0.1}, "_meta": {"title": "Save it"}}}
FILE = {"filename": "edit.mp4", "subfolder": "video", "type": "output"}
OURS = {"prompt_id": "p"}
SUCCESS = [
    ("status", {"status": {}}),
    ("executed", {"prompt_id": "another", "node": "7", "output": {"images": []}}),
    ("execution_cached", {**OURS, "nodes": ["3"]}),
    ("executing", {**OURS, "node": "7"}),
    ("progress", {**OURS, "node": "7", "value": 2, "max": 2}),
    ("executed", {**OURS, "node": "7", "output": {"images": [FILE], "animated": [True], "text": ["fine " * 40]}}),
    ("execution_success", OURS),
    ("executing", {**OURS, "node": None}),
]
FAILURE = [
    ("execution_error", {**OURS, "node_id": "7", "exception_message": "no room\n"}),
    ("executing", {**OURS, "node": None}),
]
CANCEL = [("execution_interrupted", {**OURS, "node_id": "7"}), ("executing", {**OURS, "node": None})]
REFUSAL = {
    "error": {"message": "Prompt outputs failed validation", "details": ""},
    "node_errors": {"7": {"errors": [{"message": "Value -1 smaller than min of 0", "details": "strength"}]}},
}


def frame(payload, code=0x1, final=True):
    """A WebSocket frame as a server sends it."""
    head = bytes([(0x80 if final else 0) | code])
    size = bytes([len(payload)]) if len(payload) < 126 else bytes([126]) + struct.pack(">H", len(payload))
    return head + size + payload


class Fake(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    frames, refusal, quiet = b"", None, 0.0  # set by tests, on a subclass; seconds without a word before the frames
    working = True  # whether the queue still has the workflow
    received, queued = None, None

    def do_GET(self):
        if self.path.startswith("/view"):
            self.answer(200, b"video bytes")
        elif self.path.startswith("/ws?clientId="):
            key = self.headers["Sec-WebSocket-Key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
            self.send_response(101)
            self.send_header("Upgrade", "websocket")
            self.send_header("Connection", "Upgrade")
            self.send_header("Sec-WebSocket-Accept", base64.b64encode(hashlib.sha1(key.encode()).digest()).decode())
            self.end_headers()
            if self.queued.wait(10):
                time.sleep(self.quiet)
                self.wfile.write(self.frames)
            self.close_connection = True
        elif self.path == "/queue":
            self.received.setdefault("/queue", []).append(time.monotonic())
            entry = [[0, "p" if self.working else "another", {}, {}, []]]
            self.answer(200, json.dumps({"queue_running": entry, "queue_pending": []}).encode())
        else:
            self.answer(404, b"")

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.received[self.path] = body
        self.received[f"{self.path} type"] = self.headers["Content-Type"]
        if self.path == "/prompt" and self.refusal:
            self.answer(400, json.dumps(self.refusal).encode())
        else:
            self.answer(200, json.dumps({"prompt_id": "p"}).encode())
        if self.path == "/prompt":
            self.queued.set()

    def answer(self, status, body):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def fake():
    """A function that starts the server with some events, and gives (address, bodies of requests)."""
    started = []

    def start(events=(), frames=b"", refusal=None, **more):
        frames += b"".join(frame(json.dumps({"type": kind, "data": data}).encode()) for kind, data in events)
        names = {"frames": frames, "refusal": refusal, "received": {}, "queued": threading.Event(), **more}
        handler = type("Handler", (Fake,), names)
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        started.append(server)
        return f"http://127.0.0.1:{server.server_port}", handler.received

    yield start
    for server in started:
        server.shutdown()
        server.server_close()


def test_run_and_fetch(fake, tmp_path):
    url, received = fake(SUCCESS)
    (tmp_path / "clip.mp4").write_bytes(b"\x00clip\r\n")
    heard = []
    result = run_workflow(
        url, GRAPH, {"Save it.strength": 0.3}, [tmp_path / "clip.mp4"], lambda kind, data: heard.append(kind)
    )
    assert json.loads(received["/prompt"])["prompt"]["7"]["inputs"] == {"strength": 0.3}
    assert b'filename="clip.mp4"\r\n\r\n\x00clip\r\n\r\n--' in received["/upload/image"]
    assert result.files() == result.files("7") == [FILE]
    assert result.fetch(FILE) == b"video bytes"
    assert result.cached == {"3"}
    assert heard == [kind for kind, data in SUCCESS if data.get("prompt_id") != "another"]


def test_messages_in_pieces_and_pings(fake):
    first, second = (
        frame(b'{"type": "executing", ', final=False),
        frame(b'"data": {"prompt_id": "p", "node": null}}', 0),
    )
    url, _ = fake(frames=frame(b"\x00" * 300, 0x2) + first + frame(b"are you there", 0x9) + second)
    assert Server(url).run(GRAPH, patience=10).outputs == {}


@pytest.mark.parametrize("name", ["clip.mp4", 'a "clip".mp4', "мой клип.mp4"])
def test_uploads_are_forms_that_servers_read(fake, tmp_path, name):
    from email.parser import BytesParser

    url, received = fake()
    (tmp_path / name).write_bytes(b"\x00clip\r\n\xff")
    Server(url).upload(tmp_path / name)
    kind = received["/upload/image type"]
    form = BytesParser().parsebytes(f"Content-Type: {kind}\r\n\r\n".encode() + received["/upload/image"])
    fields = {part.get_param("name", header="content-disposition"): part for part in form.get_payload()}
    assert fields["overwrite"].get_payload(decode=True) == b"true"
    assert fields["image"].get_payload(decode=True) == b"\x00clip\r\n\xff"
    assert b'filename="%b"' % name.replace('"', "%22").encode() in received["/upload/image"]


@pytest.fixture
def mute():
    """The address of a server that takes every connection and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize(
    "call",
    [
        lambda server, clip: server.run(GRAPH),
        lambda server, clip: server.request("/system_stats"),
        lambda server, clip: server.upload(clip),
        lambda server, clip: server.interrupt(),
        lambda server, clip: Result(server).fetch(FILE),
    ],
    ids=["run", "get", "upload", "interrupt", "fetch"],
)
def test_a_server_that_never_answers(mute, tmp_path, call):
    (tmp_path / "clip.mp4").write_bytes(b"clip")
    start = time.monotonic()
    with pytest.raises(WorkflowError, match=rf"^{mute} did not answer within 0.2 s: .*--timeout"):
        call(Server(mute, timeout=0.2), tmp_path / "clip.mp4")
    assert time.monotonic() - start < 5


def test_the_command_line_has_a_timeout(mute, tmp_path):
    (tmp_path / "graph.json").write_text(json.dumps(GRAPH))
    with pytest.raises(SystemExit, match=r"did not answer within 0\.1 s"):
        client.main([str(tmp_path / "graph.json"), "--server", mute, "--timeout", "0.1"])
    with pytest.raises(SystemExit, match="want a timeout of more than 0 seconds, got 0"):
        client.main([str(tmp_path / "graph.json"), "--server", mute, "--timeout", "0"])


def test_a_workflow_may_be_silent_for_longer_than_the_timeout(fake):
    url, received = fake(SUCCESS, quiet=1.0)
    assert Server(url, timeout=0.2).run(GRAPH).files() == [FILE]
    assert len(received["/queue"]) >= 2  # it was asked, and was at work


def test_a_workflow_that_the_server_lost(fake):
    url, _ = fake(SUCCESS, quiet=5.0, working=False)
    with pytest.raises(WorkflowError, match="no longer knows of this workflow"):
        Server(url, timeout=0.2).run(GRAPH)


def test_silence_that_is_not_borne(fake):
    url, _ = fake(SUCCESS, quiet=5.0)
    with pytest.raises(WorkflowError, match="is at work and has said nothing for"):
        Server(url).run(GRAPH, patience=0.3)


@pytest.mark.parametrize(
    ("events", "kind", "words"),
    [
        (FAILURE, WorkflowError, r"^Save it \(node 7\): no room$"),
        (CANCEL, Interrupted, r"cancelled at Save it \(node 7\)"),
        (SUCCESS[:3], WorkflowError, "went away"),
    ],
    ids=["error", "cancel", "gone"],
)
def test_failures(fake, events, kind, words):
    url, _ = fake(events)
    with pytest.raises(kind, match=words):
        run_workflow(url, GRAPH)


def test_a_server_that_closes_the_connection(fake):
    url, _ = fake(frames=frame(b"\x03\xe8", 0x8))
    with pytest.raises(WorkflowError, match=r"went away .*closed"):
        run_workflow(url, GRAPH)


def test_a_refused_graph(fake):
    url, _ = fake(refusal=REFUSAL)
    with pytest.raises(WorkflowError, match=r"^Save it \(node 7\): Value -1 smaller than min of 0 \(strength\)$"):
        run_workflow(url, GRAPH)


def test_no_server():
    with pytest.raises(WorkflowError, match=r"http://127.0.0.1:9 cannot be reached.*refused"):
        run_workflow("http://127.0.0.1:9", GRAPH)


def test_an_upload_that_is_not_there(fake, tmp_path):
    url, _ = fake()
    with pytest.raises(WorkflowError, match=r"cannot upload .*absent\.mp4"):
        run_workflow(url, GRAPH, uploads=[tmp_path / "absent.mp4"])


def test_command_line(fake, tmp_path, capsys):
    url, received = fake(SUCCESS)
    (tmp_path / "graph.json").write_text(json.dumps(GRAPH))
    out = tmp_path / "new" / "mine.mp4"
    client.main([str(tmp_path / "graph.json"), "--server", url, "--set", "7.strength=0.5", "--out", str(out)])
    assert json.loads(received["/prompt"])["prompt"]["7"]["inputs"] == {"strength": 0.5}
    assert out.read_bytes() == b"video bytes"
    shown = capsys.readouterr()
    assert "fine" in shown.out
    assert "Save it" in shown.err


@pytest.mark.parametrize(("out", "complaint"), [("a.png", "made 0 files '.png'"), (None, "no input 'power'")])
def test_command_line_says_what_is_wrong(fake, tmp_path, out, complaint):
    url, _ = fake(SUCCESS)
    (tmp_path / "graph.json").write_text(json.dumps(GRAPH))
    more = ["--out", str(tmp_path / out)] if out else ["--set", "7.power=1"]
    with pytest.raises(SystemExit, match=complaint):
        client.main([str(tmp_path / "graph.json"), "--server", url, *more])


def test_files_of_a_result_that_shows_text_only():
    assert Result(Server(), {"1": {"text": ["a"], "images": None}}).files() == []


@pytest.mark.parametrize(("terminal", "lines"), [(False, 4 + 1), (True, 1 + 1)])
def test_progress(terminal, lines):
    class Out:
        text = ""

        def write(self, text):
            self.text += text

        def flush(self):
            pass

        def isatty(self):
            return terminal

    progress = Progress(GRAPH, out := Out())
    progress("executing", {"node": "7"})
    for step in range(51):
        progress("progress", {"node": "7", "value": step, "max": 50})
    progress("executing", {"node": None})
    assert out.text.count("\n") == lines
    assert "50/50\n" in out.text
