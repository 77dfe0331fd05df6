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
    asked = ["node", "-e", "require('playwright-core')"]
    if subprocess.run(asked, capture_output=True, cwd=PAGE.parent, env=_environment()).returncode:
        return "no playwright-core: `npm install -g playwright-core`, or name its node_modules in NODE_PATH"
    return None


def visit(
    url: str, jobs: list[dict[str, Any]], screenshot: Path | None = None, timeout: float = 300, vue: bool = False
) -> list[Any]:
    """Opens ComfyUI at `url`, does the jobs (see `page.cjs`) and returns their results.

    Args:
        vue: draw nodes as elements of the page, not on the canvas.

    Raises:
        RuntimeError: a job failed; the message is the page's.
    """
    task = {"url": url, "chromium": _chromium(), "vue": vue, "jobs": jobs}
    task["screenshot"] = screenshot and str(screenshot)
    done = subprocess.run(
        ["node", PAGE], input=json.dumps(task), capture_output=True, text=True, timeout=timeout, env=_environment()
    )
    if done.returncode:
        raise RuntimeError(f"the browser failed: {done.stderr.strip()}")
    return json.loads(done.stdout)


def _environment() -> dict[str, str]:
    """That of this process, in which Node.js finds what was installed for all as well."""
    if "NODE_PATH" in os.environ or shutil.which("npm") is None:
        return dict(os.environ)
    everybodys = subprocess.run(["npm", "root", "-g"], capture_output=True, text=True).stdout.strip()
    return {**os.environ, "NODE_PATH": everybodys}


def _chromium() -> str | None:
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
