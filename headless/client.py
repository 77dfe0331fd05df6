"""Queue a workflow on a running ComfyUI with changed inputs, wait, and fetch what it made.

    python -m weft.headless.client workflows/api/str_match.json --upload workflows/toy_clip.mp4 \\
        --set "Target prompt.text=a red square on a teal striped background" --set "STR-Match.strength=0.3" \\
        --out edit.mp4

or from Python:

    result = run_workflow(LOCAL, "workflows/api/str_match.json", {"STR-Match.strength": 0.3}, ["my_clip.mp4"])
    data = result.fetch(result.files()[0])

It needs no ComfyUI and no torch, only headless/requirements.txt.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from .connection import LOCAL, TIMEOUT, Interrupted, Listen, Refused, Result, Server, WorkflowError
from .distributed import run_distributed
from .graph import Graph, changed, read_graph
from .parts import merged, one_part, read_part
from .progress import Progress

__all__ = ["LOCAL", "Interrupted", "Refused", "Result", "Server", "WorkflowError", "run_workflow"]


def run_workflow(
    server: str,
    workflow: Path | str | Graph,
    changes: Mapping[str, Any] | None = None,
    uploads: Iterable[Path | str] = (),
    listen: Listen = lambda kind, data: None,
    timeout: float = TIMEOUT,
    distributed: bool = False,
) -> Result:
    """Runs an API-format workflow on a running server.

    Args:
        server: its address, such as "http://127.0.0.1:8188".
        workflow: a file, or its content.
        changes: {"node title or id.input": value}.
        uploads: files for the server's input folder; inputs refer to them by file name.
        listen: called with every event.
        timeout: seconds to wait for each answer of the server; the workflow itself may take as long as it likes.
        distributed: on the workers of ComfyUI-Distributed as well, as many as are alive.

    Raises:
        ValueError: the workflow cannot be read, or a change does not fit it.
        WorkflowError: the server cannot be reached, does not answer, refuses the workflow, or a node failed.
    """
    graph = changed(workflow if isinstance(workflow, dict) else read_graph(workflow), changes or {})
    running = Server(server, timeout)
    try:
        for file in uploads:
            running.upload(file)
    except (OSError, WorkflowError) as error:
        raise WorkflowError(f"cannot upload {file}: {error}") from error
    return run_distributed(running, graph, listen) if distributed else running.run(graph, listen)


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
    parser.add_argument(
        "--upload", action="extend", nargs="+", default=[], metavar="FILE", help="into the server's input folder"
    )
    parser.add_argument("--out", type=Path, help="a file, or a folder for several")
    parser.add_argument(
        "--timeout",
        type=float,
        default=TIMEOUT,
        metavar="SECONDS",
        help="to wait for each answer of the server, however long the workflow takes (default: %(default)g)",
    )
    parser.add_argument(
        "--distributed", action="store_true", help="on all workers of ComfyUI-Distributed that the server reaches, too"
    )
    parser.add_argument("--part", metavar="K/N", help="edit and save only part K of N, from 0, of a workflow in chunks")
    parser.add_argument("--merge", type=int, metavar="N", help="put N saved parts together in place of the edit")
    parser.add_argument("--name", help="of the files of --part and --merge (default: the workflow's)")
    options = parser.parse_args(arguments)
    if (options.part is not None) + (options.merge is not None) + options.distributed > 1:
        parser.error("--part, --merge and --distributed are three ways: choose one")
    changes = dict(item.split("=", 1) if "=" in item else parser.error(f"no '=' in {item}") for item in options.set)
    try:
        graph, name = read_graph(options.workflow), options.name or options.workflow.stem
        if options.part is not None:
            graph = one_part(graph, *read_part(options.part), name)
        elif options.merge is not None:
            graph = merged(graph, options.merge, name)
        show = Progress(graph)
        result = run_workflow(
            options.server, graph, changes, options.upload, show, options.timeout, options.distributed
        )
        texts = (text for output in result.outputs.values() for text in output.get("text", ()))
        for text in dict.fromkeys(texts):  # a node's figures and the node that shows them say the same
            print(text)
        if options.out:
            _save(result, options.out)
    except (WorkflowError, ValueError, OSError) as error:
        sys.exit(f"{error}")


if __name__ == "__main__":
    main()
