"""How everything here is measured: contenders in turn, medians, ratios within one round.

A row compares contenders that do the same work. In each round every contender runs once, so that
a machine that slows down slows all of them; the ratio of a contender is the median over the rounds
of its time over the baseline's time in the same round. Rounds that other processes disturbed do not
count (see quiet.py). A row of which too few are left, or whose baseline is unsteady, has no figures
but a reason why it was not measured.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor

from benchmarks.clocks import Clock, Gpu, Run, call_clock, cuda_clock, wall_clock
from benchmarks.quiet import Round, Watch

SUBJECT = "torchcalc"  # the contender that a row's bound is for, unless the row names others
WARM_UP = 3  # rounds that are not recorded: compilation, allocation, caches
UNSTEADY = 2.0  # times its best: a baseline whose median is above that tells nothing
CALL_LOOP = 5e-3  # seconds for which a contender is called on end, where calls are measured


@dataclass(frozen=True)
class Bound:
    """What each subject's figure has to stay under, and what it should reach."""

    must: float
    aim: float | None = None


@dataclass(frozen=True)
class Roof:
    """The contender that only does the work no implementation can avoid: the copy or the GEMM."""

    contender: str
    work: float  # in one run: bytes read and written, or floating-point operations
    unit: str  # of work / s / 1e9
    needed: float | None = None  # the least work of the other contenders, where it is another


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
    subjects: tuple[str, ...] = (SUBJECT,)  # the contenders that the bound is for
    not_measured: str | None = None  # the reason, where there are no figures
    failed: bool = False  # that reason is an error

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

    def share(self, contender: str) -> float:
        """Of the roof's rate, what the contender reaches while it does the least work."""
        assert self.roof is not None
        needed = 1.0 if self.roof.needed is None else self.roof.needed / self.roof.work
        return needed * self.ratio(self.roof.contender, contender)

    @property
    def share_of_bound(self) -> float | None:
        """The largest figure over what it has to stay under; None without one of them."""
        if self.bound is None or self.not_measured:
            return None
        return max(map(self.figure, self.subjects)) / self.bound.must

    @property
    def passed(self) -> bool | None:
        return None if self.bound is None else self.within(self.bound.must)

    def within(self, limit: float) -> bool | None:
        """Whether all subjects' figures are; None where they were not measured."""
        if self.not_measured:
            return None
        return all(self.figure(name) <= limit for name in self.subjects)

    def to_json(self) -> dict[str, Any]:
        """Where the row was not measured there are neither rounds nor figures in it."""
        measured = not self.not_measured
        return {
            "name": self.name,
            "sizes": self.sizes,
            "dtype": self.dtype,
            "unit": self.unit,
            "baseline": self.baseline,
            "must": self.bound and self.bound.must,
            "aim": self.bound and self.bound.aim,
            "subjects": list(self.subjects),
            "passed": self.passed,
            "not_measured": self.not_measured,
            "roof": self.roof
            and {
                "contender": self.roof.contender,
                "rate": self.roof_rate if measured else None,
                "unit": self.roof.unit,
            },
            "contenders": {name: self._entry(name) if measured else {} for name in self.rounds},
        }

    def _entry(self, contender: str) -> dict[str, Any]:
        entry: dict[str, Any] = {"median": self.value(contender)}
        if self.baseline:
            entry["ratio"] = self.ratio(contender, self.baseline)
        if self.roof:
            entry["share"] = self.share(contender)
        return entry | {"rounds": self.rounds[contender]}


@dataclass(frozen=True)
class Task:
    """A row still to be measured. Can be pickled, to be run in a process of its own."""

    name: str
    run: Callable[[], Row]
    alone: bool = True  # in its process; else together with its neighbours that are not, either


@dataclass(frozen=True)
class Config:
    """What the command line asks for."""

    device: torch.device  # where tensors are
    repeats: int
    quick: bool = False  # small sizes, for tests: times mean nothing
    compile: bool = True
    watch: Watch | None = None  # without one, rounds count whatever else the machine does
    gpu: Gpu | None = None  # whose time is measured; None: the CPU's
    limit: float = math.inf  # seconds for all rows

    def size(self, quick: int, cpu: int, gpu: int) -> int:
        """Of tensors: large ones for a GPU, so that all of it has work for a while."""
        return quick if self.quick else cpu if self.gpu is None else gpu

    def tensor(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(shape, dtype=dtype, device=self.device)

    def seed(self) -> Tensor:
        """Of a mask; given, so that drawing it is not measured."""
        return torch.zeros(1, dtype=torch.int64, device=self.device)

    def with_compiled(self, eager: Callable[..., Tensor]) -> dict[str, Callable[..., Tensor]]:
        """``eager``, and unless that is turned off the same under torch.compile."""
        if not self.compile:
            return {"eager": eager}
        if self.gpu is None:
            return {"eager": eager, "torch.compile": torch.compile(eager, dynamic=False)}
        return {"eager": eager, "torch.compile": self.gpu.compile(eager)}

    def bound(self, must: float, aim: float | None = None) -> Bound | None:
        """A bound on a time; those hold for full sizes on a CPU."""
        return None if self.quick or self.gpu is not None else Bound(must, aim)

    def compare(
        self,
        name: str,
        sizes: str,
        dtype: str,
        contenders: Mapping[str, Run],
        *,
        baseline: str,
        bound: Bound | None = None,
        roof: Roof | None = None,
        subjects: tuple[str, ...] = (SUBJECT,),
        one_thread: bool = False,
        calls: bool = False,
        rounds: int | None = None,
    ) -> Row:
        """Measures a row; ``calls``: in microseconds of the caller's time.

        ``rounds``: so many will do, where there are many rows or they take long.
        """
        repeats = self.repeats if rounds is None else min(rounds, self.repeats)
        if calls:
            clock = call_clock(self.gpu, 0.0 if self.quick else CALL_LOOP)
        else:
            clock = wall_clock if self.gpu is None else cuda_clock(self.gpu)
        play = partial(one_round, contenders, clock)
        # A GPU's events do not notice who uses the cores.
        watch = self.watch if calls or self.gpu is None else None
        with no_gc(), threads(1 if one_thread else torch.get_num_threads()):
            times, reason = record(watch, contenders, play, repeats, WARM_UP)
        if reason is None and not self.quick:
            reason = unsteady(baseline, times[baseline])
        unit = "us" if calls else "ms"
        return Row(name, sizes, dtype, times, unit, baseline, bound, roof, subjects, reason)


def record(
    watch: Watch | None,
    names: Iterable[str],
    play: Callable[[int], Round],
    count: int,
    warm_up: int = 0,
) -> tuple[dict[str, list[float]], str | None]:
    """What ``play`` returns in at least ``count`` rounds, by name; or why it does not count."""
    if watch is None:
        rounds, reason = [play(k) for k in range(warm_up + count)][warm_up:], None
    else:
        rounds, reason = watch.record(play, count, warm_up)
    return {name: [values[name] for values in rounds] for name in names}, reason


def one_round(contenders: Mapping[str, Run], clock: Clock, index: int) -> Round:
    """What every contender takes.

    Every other round runs backwards, so that no contender always follows the same other one.
    """
    order = list(contenders) if index % 2 == 0 else list(reversed(contenders))
    return {name: clock(contenders[name]) for name in order}


def unsteady(name: str, times: list[float]) -> str | None:
    """Why a baseline of these times is none: its median is far from its best."""
    middle, best = median(times), min(times)
    if middle <= UNSTEADY * best:
        return None
    return f"{name} is unsteady: median {middle:.3g}, best {best:.3g}"


@contextmanager
def threads(count: int) -> Iterator[None]:
    """With so many threads in torch's ops."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def no_gc() -> Iterator[None]:
    """Without pauses for garbage collection."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def size_name(n: int) -> str:
    """16777216 -> 16Mi."""
    return f"{n >> 20}Mi" if n >= 1 << 20 and n % (1 << 20) == 0 else str(n)


def dtype_name(dtype: torch.dtype) -> str:
    """torch.float32 -> float32."""
    return str(dtype).removeprefix("torch.")
