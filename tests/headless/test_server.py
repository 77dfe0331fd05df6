"""Starting and stopping, with stand-ins for ComfyUI of a few lines."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from weft.headless import comfyui as place
from weft.headless.server import comfyui_server

SERVES = """
import http.server, os, pathlib, subprocess, sys, time
option = dict(zip(sys.argv[1::1], sys.argv[2::1]))
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
pathlib.Path(option["--base-directory"], "pids").write_text(f"{os.getpid()} {child.pid}")
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.send_header("Content-Length", "2"); self.end_headers(); self.wfile.write(b"{}")
http.server.HTTPServer(("127.0.0.1", int(option["--port"])), Handler).serve_forever()
"""
FAILS = "print('no such GPU'); raise SystemExit(3)"


@pytest.fixture
def comfyui(tmp_path):
    """A function that makes a ComfyUI with this main.py."""

    def make(main):
        folder = tmp_path / "ComfyUI"
        folder.mkdir()
        (folder / "main.py").write_text(main)
        for file in ("nodes.py", "requirements.txt"):
            (folder / file).touch()
        return folder

    return make


def alive(pid):
    """Whether a process still runs; one that waits to be collected does not."""
    state = subprocess.run(["ps", "-o", "stat=", "-p", pid], capture_output=True, text=True).stdout.strip()
    return bool(state) and not state.startswith("Z")


@pytest.mark.skipif(os.name == "nt", reason="process groups of POSIX")
def test_it_runs_with_the_pack_and_stops_with_its_children(comfyui, tmp_path):
    base, pids = tmp_path / "base", []

    def use():
        with comfyui_server(comfyui(SERVES), base) as server:
            assert server.request("/system_stats") == b"{}"
            assert (base / "custom_nodes" / "weft" / "__init__.py").is_file()
            pids.extend((base / "pids").read_text().split())
            assert all(alive(pid) for pid in pids)
            raise KeyError("in the middle")

    with pytest.raises(KeyError, match="in the middle"):
        use()
    assert pids
    assert not any(alive(pid) for pid in pids)


def test_a_failure_to_start_shows_the_log(comfyui, tmp_path):
    with (
        pytest.raises(RuntimeError, match=r"(?s)ended with 3.*no such GPU"),
        comfyui_server(comfyui(FAILS), tmp_path / "base"),
    ):
        pass


def test_comfyui_is_where_the_user_says(comfyui, monkeypatch):
    folder = comfyui(FAILS)
    monkeypatch.setenv("COMFYUI_PATH", str(folder))
    assert place.find_comfyui() == folder
    monkeypatch.setenv("COMFYUI_PATH", str(folder / "elsewhere"))
    with pytest.raises(ValueError, match=r"COMFYUI_PATH.*no ComfyUI"):
        place.find_comfyui()


def test_comfyui_path_may_name_several(comfyui, monkeypatch, tmp_path):
    first, second = comfyui(FAILS), tmp_path / "ComfyUI-other"
    shutil.copytree(first, second)
    monkeypatch.setenv("COMFYUI_PATH", os.pathsep.join(map(str, (first, second))))
    assert place.find_comfyuis() == [first, second]
    assert place.find_comfyui() == first


def test_a_checkout_is_run_by_the_python_beside_it(tmp_path):
    folder = tmp_path / "ComfyUI-other"
    folder.mkdir()
    (folder / "requirements.txt").write_text("torch\ntorchaudio\npytest>=1  # and no more\n")
    assert place.interpreter_of(folder) == Path(sys.executable)
    (folder / "requirements.txt").write_text("torch\na-package-that-is-nowhere==1.0\n")
    assert place.interpreter_of(folder) == Path(sys.executable)
    beside = tmp_path / "venv-other" / "bin" / "python"
    beside.parent.mkdir(parents=True)
    beside.touch()
    assert place.interpreter_of(folder) == beside
    own = folder / ".venv" / "bin" / "python"
    own.parent.mkdir(parents=True)
    own.touch()
    assert place.interpreter_of(folder) == own


def test_no_comfyui_is_no_error(monkeypatch, tmp_path):
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    monkeypatch.setattr(place, "USUAL", (tmp_path / "a",))
    monkeypatch.setattr(place, "OURS", tmp_path / "b")
    assert place.find_comfyui() is None


def test_a_clone_that_fails_says_why(monkeypatch, tmp_path):
    monkeypatch.setattr(place, "REPOSITORY", str(tmp_path / "nothing"))
    monkeypatch.setattr(place, "OURS", tmp_path / "clone")
    assert "nothing" in place.clone_comfyui()
    assert not (tmp_path / "clone" / "main.py").exists()
