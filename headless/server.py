"""A ComfyUI of our own: started without a browser on a free port, with this pack in it, and always stopped."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from .client import Server, WorkflowError
from .comfyui import ROOT, interpreter_of

PACK = "weft"  # the folder name in custom_nodes, which web pages and templates go by
START_TIMEOUT = 300  # seconds; the first start on a slow machine compiles everything
STOP_TIMEOUT = 10
LOG_TAIL = 20  # lines


@contextmanager
def comfyui_server(
    comfyui: Path, base: Path, *, arguments: Sequence[str] = (), log: Path | None = None
) -> Iterator[Server]:
    """Runs ComfyUI for the length of a `with`, by the Python that `interpreter_of` finds for the checkout.

    Args:
        comfyui: its checkout.
        base: its folder for models, input, output and custom nodes; made if need be, and kept.
        arguments: more of its command line, such as "--cpu".
        log: where its output goes; by default `base`/comfyui.log.

    Raises:
        RuntimeError: it did not start; the message ends with the last lines of its log.
    """
    log = log or base / "comfyui.log"
    for folder in ("custom_nodes", "input", "output", "models/diffusers"):
        (base / folder).mkdir(parents=True, exist_ok=True)
    pack = base / "custom_nodes" / PACK
    if not pack.exists():
        pack.symlink_to(ROOT, target_is_directory=True)
    port = _free_port()
    command = [str(interpreter_of(comfyui)), "main.py", "--listen", "127.0.0.1", "--port", str(port)]
    command += [
        "--disable-api-nodes",
        "--base-directory",
        str(base),
        "--database-url",
        "sqlite:///:memory:",
        *arguments,
    ]
    with open(log, "wb") as output:
        process = subprocess.Popen(
            command,
            cwd=comfyui,
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            server = Server(f"http://127.0.0.1:{port}")
            _wait_until_ready(process, server, log)
            yield server
        finally:
            _stop(process)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _wait_until_ready(process: subprocess.Popen, server: Server, log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT
    while time.monotonic() < deadline:
        try:
            server.request("/system_stats")
            return
        except WorkflowError:
            pass
        try:
            process.wait(timeout=0.2)
            break
        except subprocess.TimeoutExpired:
            pass
    what = f"did not answer in {START_TIMEOUT} s" if process.poll() is None else f"ended with {process.returncode}"
    tail = "\n".join(log.read_text(errors="replace").splitlines()[-LOG_TAIL:])
    raise RuntimeError(f"ComfyUI {what}; the end of {log}:\n{tail}")


def _stop(process: subprocess.Popen) -> None:
    """Ends the server and whatever it started."""
    for ask in (signal.SIGTERM, getattr(signal, "SIGKILL", signal.SIGTERM)):
        try:
            if hasattr(os, "killpg"):
                os.killpg(process.pid, ask)
            else:
                process.send_signal(ask)
            process.wait(STOP_TIMEOUT)
            return
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue
