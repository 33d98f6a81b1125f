"""Which rounds count: those in which no other process used the cores.

Beside other work, OpenMP's threads spin until the last of them has had its turn, and what splits
its work over threads, as PyTorch does, looks ten times slower than what does not: no ratio survives
that. So the CPU time that the cores spent, which /proc/stat tells, is compared with that of this
process, before the first round and over each stretch of rounds. Disturbed stretches are measured
again once it is quiet, until patience is over.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

STAT = Path("/proc/stat")
# Of the cores, used by others. A core's tenth shifts a time by a few percent; on machines with many
# cores a fiftieth of all is what daemons use.
LIMIT, LIMIT_SHARE = 0.1, 0.02
LOOK = 0.25  # seconds, before the first round: the kernel counts in ticks of 10 ms
STRETCH = 0.5  # seconds of rounds that are judged together, at least

Round = dict[str, float]  # contender -> its time


@dataclass(frozen=True)
class Usage:
    """A reading of three clocks, in seconds; only differences mean anything."""

    wall: float
    cores: float  # spent by the cores that this process may use, on anything
    own: float  # spent by this process, all its threads, and the children it has waited for


def read_usage() -> Usage:
    """A reading from /proc/stat; without that file, as if all were quiet."""
    children = os.times()
    own = time.process_time() + children.children_user + children.children_system
    spent = busy_ticks(STAT.read_text()) / os.sysconf("SC_CLK_TCK") if STAT.exists() else own
    return Usage(time.perf_counter(), spent, own)


def busy_ticks(stat: str) -> int:
    """Ticks that the cores this process may use were not idle."""
    usable = {f"cpu{core}" for core in usable_cores()}
    # user nice system idle iowait irq softirq steal; guests' time is part of user's.
    lines = (line.split() for line in stat.splitlines())
    ticks = [[int(n) for n in words[1:9]] for words in lines if words and words[0] in usable]
    return sum(sum(line) - sum(line[3:5]) for line in ticks)


def usable_cores() -> set[int]:
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


class Watch:
    """Measures rounds while nobody else uses the cores.

    Args:
        patience: seconds that may be lost to others, all rows together.
        read, sleep: the clocks, and how to wait.

    Can be handed to a process that is being started: the patience left is shared memory.
    """

    def __init__(
        self,
        patience: float,
        read: Callable[[], Usage] = read_usage,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._left = multiprocessing.get_context("spawn").Value("d", patience)
        self._read, self._sleep = read, sleep

    @property
    def left(self) -> float:
        """Seconds of patience."""
        return float(self._left.value)

    def record(
        self, play: Callable[[int], Round], rounds: int, warm_up: int = 0
    ) -> tuple[list[Round], str | None]:
        """At least ``rounds`` undisturbed results of ``play(index)``, or fewer and the reason."""
        kept: list[Round] = []
        reason = self._wait()
        if reason is None:  # else warming up, which may mean to compile, would be for nothing
            for k in range(warm_up):
                play(k)
        while reason is None and len(kept) < rounds:
            start, stretch = self._read(), list[Round]()
            end = start
            while not stretch or end.wall - start.wall < STRETCH:
                stretch.append(play(len(kept) + len(stretch)))
                end = self._read()
            reason = _busy(start, end)
            if reason is None:
                kept += stretch
            elif self._lose(end.wall - start.wall):
                reason = self._wait()
        return kept, reason

    def _wait(self) -> str | None:
        """Returns at the first quiet look, or with the reason when patience is over."""
        while True:
            start = self._read()
            self._sleep(LOOK)
            end = self._read()
            reason = _busy(start, end)
            if reason is None or not self._lose(end.wall - start.wall):
                return reason

    def _lose(self, seconds: float) -> bool:
        """Whether there is patience left after that."""
        self._left.value = max(0.0, self.left - seconds)
        return self.left > 0


def _busy(start: Usage, end: Usage) -> str | None:
    """What others did between two readings, where that was too much."""
    others = (end.cores - start.cores - (end.own - start.own)) / (end.wall - start.wall)
    cores = len(usable_cores())
    if others <= max(LIMIT, LIMIT_SHARE * cores):
        return None
    return f"other processes used {others:.1f} of {cores} cores"
