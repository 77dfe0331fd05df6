"""What `torch.compile` would have of each method: into how many graphs a network falls under its controls.

    python -m weft.benchmarks.compiled                # counts, on the toy image model; a minute or more a method
    python -m weft.benchmarks.compiled --plain        # a plain evaluation before and after, with the C++ compiler

The pack compiles plain evaluations alone, and these on request (`denoiser.compiles`). Counting compiles nothing: a
graph is run as it was traced.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from unittest.mock import patch

import torch

from .overhead import Stage, stages
from .split import Done, Steps, least

TOY, MIDDLE = 2, 0  # of `overhead.stages`


def graphs(stage: Stage, run: Callable) -> str:
    """Graphs of one evaluation, graph breaks, and functions that could not be traced at all and stay Python."""
    from torch import _dynamo as dynamo

    denoiser, seen = stage.ears.denoiser, []

    def counted(graph, inputs):
        seen.append(graph)
        return graph.forward

    def running(plan, evaluation):
        dynamo.reset()
        dynamo.utils.counters.clear()
        seen.clear()
        return torch.compile(denoiser.network, backend=counted)

    with patch.object(denoiser, "running", running), suppress(Done):
        run(Steps(lambda begins: None))
    counters = dynamo.utils.counters
    frames = counters["frames"]
    return f"{len(seen)} | {sum(counters['graph_break'].values())} | {frames['total'] - frames['ok']}"


def plain_times(stage: Stage) -> str:
    """Milliseconds of processor time of an evaluation as it is and compiled, and by the clock seconds of compiling."""
    method = stage.methods[0]
    stage.look(method)
    evaluate = lambda: stage.evaluate(method.asked[0])  # noqa: E731
    before, started = least(evaluate, 3.0), time.perf_counter()
    stage.ears.denoiser.compiles = True
    evaluate()
    took = time.perf_counter() - started
    return f"{1e3 * before:.0f} | {1e3 * least(evaluate, 3.0):.0f} | {took:.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="methods whose name has this regular expression in it")
    parser.add_argument("--plain", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.plain:
        print("network | evaluation, ms | compiled, ms | compiling, s")
        for number in (TOY, MIDDLE):
            stage = stages()[number]()
            print(f"{stage.title} | {plain_times(stage)}", flush=True)
        return
    torch._dynamo.config.suppress_errors = True  # what cannot be traced runs as Python, and is counted
    stage = stages()[TOY]()
    print("method | graphs | breaks | not traced")
    for method in stage.methods:
        if re.search(options.only, method.name):
            print(f"{method.name} | {graphs(stage, method.run)}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
