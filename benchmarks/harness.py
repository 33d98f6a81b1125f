"""How everything here is measured: contenders in turn, medians, ratios within one round.

A row compares contenders that do the same work. In each round every contender runs once, so that
a machine that slows down slows all of them; the ratio of a contender is the median over the rounds
of its time over the baseline's time in the same round.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor

Run = Callable[[], object]  # what a contender does; its outputs are freed after the clock stops
Clock = Callable[[Run], float]  # runs it once, returns milliseconds

SUBJECT = "torchcalc"  # the contender that a row's bound is for
WARM_UP = 3  # rounds that are not recorded: compilation, allocation, caches


@dataclass(frozen=True)
class Bound:
    """What the subject's figure has to stay under, and what it should reach."""

    must: float
    aim: float | None = None


@dataclass(frozen=True)
class Roof:
    """The contender that only does the work no implementation can avoid: the copy or the GEMM."""

    contender: str
    work: float  # in one run: bytes read and written, or floating-point operations
    unit: str  # of work / s / 1e9


@dataclass(frozen=True)
class Row:
    """One line of the result: what each contender took, round by round."""

    name: str
    sizes: str
    dtype: str
    rounds: Mapping[str, list[float]]  # contender -> one value a round
    unit: str = "ms"
    baseline: str | None = None  # figures are ratios to it; None: they are the values themselves
    bound: Bound | None = None
    roof: Roof | None = None

    def value(self, contender: str) -> float:
        return median(self.rounds[contender])

    def ratio(self, contender: str, to: str) -> float:
        pairs = zip(self.rounds[contender], self.rounds[to], strict=True)
        return median(own / other for own, other in pairs)

    def figure(self, contender: str) -> float:
        """What is compared and bounded: the ratio to the baseline, or the value without one."""
        if self.baseline is None:
            return self.value(contender)
        return self.ratio(contender, self.baseline)

    def value_name(self, contender: str) -> str:
        """The value with three significant digits and its unit."""
        value = self.value(contender)
        return f"{value:.0f} {self.unit}" if value >= 100 else f"{value:.3g} {self.unit}"

    @property
    def compared(self) -> list[str]:
        """The contenders other than the baseline and the roof."""
        roof = self.roof.contender if self.roof else None
        return [name for name in self.rounds if name not in (self.baseline, roof)]

    @property
    def roof_rate(self) -> float | None:
        """What the roof reaches, in its unit."""
        if self.roof is None:
            return None
        return self.roof.work / self.value(self.roof.contender) / 1e6

    @property
    def passed(self) -> bool | None:
        return None if self.bound is None else self.figure(SUBJECT) <= self.bound.must

    def to_json(self) -> dict[str, Any]:
        contenders = {}
        for name, values in self.rounds.items():
            entry: dict[str, Any] = {"median": self.value(name)}
            if self.baseline:
                entry["ratio"] = self.ratio(name, self.baseline)
            if self.roof:
                entry["share"] = self.ratio(self.roof.contender, name)
            contenders[name] = entry | {"rounds": values}
        return {
            "name": self.name,
            "sizes": self.sizes,
            "dtype": self.dtype,
            "unit": self.unit,
            "baseline": self.baseline,
            "must": self.bound and self.bound.must,
            "aim": self.bound and self.bound.aim,
            "passed": self.passed,
            "roof": self.roof
            and {
                "contender": self.roof.contender,
                "rate": self.roof_rate,
                "unit": self.roof.unit,
            },
            "contenders": contenders,
        }


@dataclass(frozen=True)
class Task:
    """A row still to be measured. Can be pickled, to be run in a process of its own."""

    name: str
    run: Callable[[], Row]


@dataclass(frozen=True)
class Config:
    """What the command line asks for."""

    device: torch.device
    repeats: int
    quick: bool = False  # small sizes, for tests: times mean nothing
    compile: bool = True

    def tensor(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(shape, dtype=dtype, device=self.device)

    def with_compiled(self, eager: Callable[..., Tensor]) -> dict[str, Callable[..., Tensor]]:
        """``eager``, and unless that is turned off the same under torch.compile."""
        if not self.compile:
            return {"eager": eager}
        return {"eager": eager, "torch.compile": torch.compile(eager, dynamic=False)}

    def bound(self, must: float, aim: float) -> Bound | None:
        """A bound on a time; those hold for full sizes on a CPU."""
        return None if self.quick or self.device.type != "cpu" else Bound(must, aim)

    def measure(self, contenders: Mapping[str, Run]) -> dict[str, list[float]]:
        clock = cuda_clock(self.device) if self.device.type == "cuda" else wall_clock
        interleave(contenders, WARM_UP, clock)
        return interleave(contenders, self.repeats, clock)


def interleave(contenders: Mapping[str, Run], rounds: int, clock: Clock) -> dict[str, list[float]]:
    """Milliseconds of every contender in every round.

    Every other round runs backwards, so that no contender always follows the same other one.
    """
    times: dict[str, list[float]] = {name: [] for name in contenders}
    with no_gc():
        for k in range(rounds):
            for name in times if k % 2 == 0 else reversed(times):
                times[name].append(clock(contenders[name]))
    return times


@contextmanager
def no_gc() -> Iterator[None]:
    """Without pauses for garbage collection."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def wall_clock(run: Run) -> float:
    start = time.perf_counter()
    out = run()
    elapsed = time.perf_counter() - start
    del out
    return round(elapsed * 1e3, 4)


def cuda_clock(device: torch.device) -> Clock:
    """A clock of GPU time between two events, the L2 cache having been flushed."""
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


def size_name(n: int) -> str:
    """16777216 -> 16Mi."""
    return f"{n >> 20}Mi" if n >= 1 << 20 and n % (1 << 20) == 0 else str(n)


def dtype_name(dtype: torch.dtype) -> str:
    """torch.float32 -> float32."""
    return str(dtype).removeprefix("torch.")
