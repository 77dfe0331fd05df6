"""Time and memory of one call, the same way on every device."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode


def peak_bytes(call: Callable[[], object], device: str | torch.device = "cpu") -> int:
    """The most memory that tensors made by `call` take at once, above what there was before it.

    On a GPU the allocator's own high-water mark; on the CPU the running sum over every allocation and release that
    torch's profiler reports. Both count temporaries inside operators and do not depend on timing.
    """
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    # straight from the recorder: a trace file of a long call is hundreds of MB of JSON
    events = profiler.profiler.kineto_results.events()
    steps = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    if not steps:
        raise RuntimeError("torch's profiler reported no allocation: memory cannot be measured here")
    now = peak = 0
    for _, change in steps:
        now += change
        peak = max(peak, now)
    return peak


def milliseconds(call: Callable[[], object], device: str | torch.device = "cpu", runs: int = 3) -> float:
    """Median time of `runs` calls after one that is not counted.

    Wall time on a GPU; on the CPU the process's CPU time over all threads, so that other work there does not count.
    """
    cuda = torch.device(device).type == "cuda"
    clock = time.perf_counter if cuda else time.process_time
    times = []
    for _ in range(runs + 1):
        start = clock()
        call()
        if cuda:
            torch.cuda.synchronize(device)
        times.append(1e3 * (clock() - start))
    return median(times[1:])


class Operations(TorchDispatchMode):
    """`with Operations() as seen: ...` leaves in `seen.count` how many operations torch ran, views left out: about the
    launches of the same code on a GPU."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += not func.is_view
        return func(*args, **(kwargs or {}))
