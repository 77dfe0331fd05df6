"""What `torch.compile` would have of a network is counted without compiling, and the network is left as it was."""

from types import SimpleNamespace

import torch

from weft.benchmarks.compiled import graphs
from weft.benchmarks.split import Done


class Breaking(torch.nn.Module):
    def forward(self, x):
        x = x + 1
        torch._dynamo.graph_break()
        return x * 2


def counted(network):
    denoiser = SimpleNamespace(network=network, running=None)

    def run(steps):
        denoiser.running(None, None)(torch.ones(2))
        raise Done

    text = graphs(SimpleNamespace(ears=SimpleNamespace(denoiser=denoiser)), run)
    assert denoiser.running is None, "it is as before"
    return text


def test_graphs_and_breaks_are_counted():
    assert counted(torch.nn.Identity()).startswith(("0 | 0", "1 | 0"))
    assert counted(torch.nn.Linear(2, 2)) == "1 | 0 | 0"
    assert counted(Breaking()).startswith("2 | 1")
