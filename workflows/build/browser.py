"""ComfyUI's real frontend from Python: `page.cjs` run by Node.js in a headless Chromium.

Both are for developers only: Chromium from the system, and `npm install playwright-core` in any folder whose
`node_modules` is named by NODE_PATH.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

PAGE = Path(__file__).with_name("page.cjs")
PATIENCE = 600  # seconds for one job
NAMES = ("chromium", "chromium-browser", "google-chrome")


def obstacle() -> str | None:
    """Why no browser can be driven here, or None."""
    if _chromium() is None:
        return f"no browser: none of {', '.join(NAMES)} is installed, and CHROMIUM names none"
    if shutil.which("node") is None:
        return "no Node.js"
    asked = ["node", "-e", "require('playwright-core')"]
    if subprocess.run(asked, capture_output=True, cwd=PAGE.parent, env=_environment()).returncode:
        return "no playwright-core: `npm install -g playwright-core`, or name its node_modules in NODE_PATH"
    return None


class Pages:
    """Pages of ComfyUI that are open."""

    def __init__(self, process: subprocess.Popen[str], complaints: IO[str]):
        self.process, self.complaints = process, complaints

    def do(self, job: dict[str, Any], timeout: float = PATIENCE) -> list[Any]:
        """Does one job, see `page.cjs`, in every page; returns their answers.

        Raises:
            RuntimeError: it failed, or took longer than `timeout` seconds; the message is the page's.
        """
        watch = threading.Timer(timeout, self.process.kill)
        watch.start()
        try:
            self.process.stdin.write(json.dumps(job) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        finally:
            watch.cancel()
        if not line:
            self.complaints.seek(0)
            raise RuntimeError(f"the browser failed: {self.complaints.read().strip() or f'no answer in {timeout} s'}")
        answer = json.loads(line)
        if "error" in answer:
            raise RuntimeError(f"the browser failed: {answer['error']}")
        return answer["answers"]


@contextmanager
def open_pages(url: str, vue: Sequence[bool] = (False,), sharp: bool = False) -> Iterator[Pages]:
    """Opens ComfyUI at `url` in one page for each of `vue`: whether nodes are elements of the page, or on the canvas.

    Args:
        sharp: a pixel of the page is four, and nothing of the page lies over the graph, for pictures.

    Raises:
        RuntimeError: a page did not open; the message is the browser's.
    """
    with tempfile.TemporaryFile("w+") as complaints:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": complaints}
        with subprocess.Popen(["node", PAGE], text=True, env=_environment(), **pipes) as process:
            pages = Pages(process, complaints)
            try:
                pages.do({"url": url, "chromium": _chromium(), "vue": list(vue), "sharp": sharp})
                yield pages
            finally:
                process.stdin.close()  # which closes the browser


def visit(url: str, jobs: Iterable[dict[str, Any]], sharp: bool = False) -> list[Any]:
    """Opens ComfyUI at `url`, does the jobs in one page and returns their answers. RuntimeError as in `Pages.do`."""
    with open_pages(url, sharp=sharp) as pages:
        return [answer for job in jobs for answer in pages.do(job)]


def _environment() -> dict[str, str]:
    """That of this process, in which Node.js finds what was installed for all as well."""
    if "NODE_PATH" in os.environ or shutil.which("npm") is None:
        return dict(os.environ)
    everybodys = subprocess.run(["npm", "root", "-g"], capture_output=True, text=True).stdout.strip()
    return {**os.environ, "NODE_PATH": everybodys}


def _chromium() -> str | None:
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
