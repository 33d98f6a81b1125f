"""Clocks: each runs a contender and says what one run took."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import repeat

import torch

Run = Callable[[], object]  # what a contender does; its outputs are freed after the clock stops
Clock = Callable[[Run], float]


def wall_clock(run: Run) -> float:
    """Milliseconds of one run on the CPU."""
    start = time.perf_counter()
    out = run()
    elapsed = time.perf_counter() - start
    del out
    return round(elapsed * 1e3, 4)


def cuda_clock(device: torch.device) -> Clock:
    """A clock of GPU milliseconds between two events, the L2 cache having been flushed."""
    l2_bytes = torch.cuda.get_device_properties(device).L2_cache_size
    flush = torch.empty(4 * l2_bytes, dtype=torch.uint8, device=device)
    start, end = torch.Event(device, enable_timing=True), torch.Event(device, enable_timing=True)

    def clock(run: Run) -> float:
        flush.zero_()  # also gives the host time to launch before the GPU gets to `start`
        start.record()
        out = run()
        end.record()
        end.synchronize()
        del out
        return round(float(start.elapsed_time(end)), 4)

    return clock


def call_clock(device: torch.device, loop_seconds: float) -> Clock:
    """A clock of microseconds per call, in a loop of so many calls that it lasts ``loop_seconds``.

    A single call of a few microseconds is as short as what disturbs it, and as reading the time.
    """
    counts: dict[Run, int] = {}

    def loop(run: Run, count: int) -> float:
        start = time.perf_counter()
        for _ in repeat(None, count):
            run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    def clock(run: Run) -> float:
        if run not in counts:
            run()  # compiles, or fills caches
            count = 1
            while (elapsed := loop(run, count)) < loop_seconds / 10:
                count *= 4
            counts[run] = max(1, round(count * loop_seconds / elapsed))
        return round(loop(run, counts[run]) / counts[run] * 1e6, 4)

    return clock
