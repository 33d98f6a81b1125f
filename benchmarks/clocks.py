"""Clocks: each runs a contender and says what one run took; and the GPU, as they need it."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import repeat
from typing import Any

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


class Gpu:
    """torch's current GPU. The rest of the benchmarks asks no other questions about it."""

    device = torch.device("cuda")

    def name(self) -> str:
        return torch.cuda.get_device_name()

    def l2_bytes(self) -> int:
        return int(torch.cuda.get_device_properties(self.device).L2_cache_size)

    def event(self) -> Any:
        return torch.cuda.Event(enable_timing=True)

    def synchronize(self) -> None:
        torch.cuda.synchronize()

    def compile(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The fastest that torch.compile makes for large tensors.

        That is max-autotune without CUDA graphs: those save launches, which no event sees here,
        and copy their inputs, which costs as much as the kernels.
        """
        return torch.compile(function, dynamic=False, mode="max-autotune-no-cudagraphs")


class DryGpu(Gpu):
    """Stands in for a GPU: everything runs, on the CPU, and its times mean nothing."""

    device = torch.device("cpu")

    def name(self) -> str:
        return "dry run"

    def l2_bytes(self) -> int:
        return 1 << 16

    def event(self) -> Any:
        return _WallEvent()

    def synchronize(self) -> None:
        pass

    def compile(self, function: Callable[..., Any]) -> Callable[..., Any]:
        super().compile(function)  # which looks at its options now, and compiles later
        return torch.compile(function, dynamic=False, backend="eager")


class _WallEvent:
    """What cuda_clock calls of torch.cuda.Event."""

    def record(self) -> None:
        self.time = time.perf_counter()

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, end: _WallEvent) -> float:
        return (end.time - self.time) * 1e3


def cuda_clock(gpu: Gpu) -> Clock:
    """A clock of GPU milliseconds between two events, the L2 cache having been flushed."""
    flush = torch.empty(4 * gpu.l2_bytes(), dtype=torch.uint8, device=gpu.device)
    start, end = gpu.event(), gpu.event()

    def clock(run: Run) -> float:
        flush.zero_()  # also gives the host time to launch before the GPU gets to `start`
        start.record()
        out = run()
        end.record()
        end.synchronize()
        del out
        return round(float(start.elapsed_time(end)), 4)

    return clock


def call_clock(gpu: Gpu | None, loop_seconds: float) -> Clock:
    """A clock of microseconds per call, in a loop of so many calls that it lasts ``loop_seconds``.

    A single call of a few microseconds is as short as what disturbs it, and as reading the time.
    """
    counts: dict[Run, int] = {}

    def loop(run: Run, count: int) -> float:
        start = time.perf_counter()
        for _ in repeat(None, count):
            run()
        if gpu is not None:
            gpu.synchronize()
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
