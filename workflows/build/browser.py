"""ComfyUI's real frontend from Python: `page.cjs` run by Node.js in a headless Chromium.

Both are for developers only: Chromium from the system, and `npm install playwright-core` in any folder whose
`node_modules` is named by NODE_PATH.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

PAGE = Path(__file__).with_name("page.cjs")
NAMES = ("chromium", "chromium-browser", "google-chrome")


def obstacle() -> str | None:
    """Why no browser can be driven here, or None."""
    if _chromium() is None:
        return f"no browser: none of {', '.join(NAMES)} is installed, and CHROMIUM names none"
    if shutil.which("node") is None:
        return "no Node.js"
    if subprocess.run(["node", "-e", "require('playwright-core')"], capture_output=True, cwd=PAGE.parent).returncode:
        return "no playwright-core: `npm install playwright-core` anywhere, and name that node_modules in NODE_PATH"
    return None


def visit(url: str, jobs: list[dict[str, Any]], screenshot: Path | None = None, timeout: float = 300) -> list[Any]:
    """Opens ComfyUI at `url`, does the jobs (see `page.cjs`) and returns their results.

    Raises:
        RuntimeError: a job failed; the message is the page's.
    """
    task = {"url": url, "chromium": _chromium(), "jobs": jobs, "screenshot": screenshot and str(screenshot)}
    done = subprocess.run(["node", PAGE], input=json.dumps(task), capture_output=True, text=True, timeout=timeout)
    if done.returncode:
        raise RuntimeError(f"the browser failed: {done.stderr.strip()}")
    return json.loads(done.stdout)


def _chromium() -> str | None:
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
