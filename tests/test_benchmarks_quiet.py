"""Benchmark rounds that other processes disturb do not count."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # benchmarks is part of the checkout, not of the package

from benchmarks import quiet  # noqa: E402
from benchmarks.harness import Bound, Config  # noqa: E402
from benchmarks.quiet import Usage, Watch, busy_ticks, usable_cores  # noqa: E402

pytestmark = pytest.mark.no_kernels


class Machine:
    """Clocks of a machine of which others use ``others`` cores; a round takes a tenth of a second.

    Readings are what Watch asks for: the one before and the one after of each look and each round.
    """

    def __init__(self, others):
        self.others, self.now, self.spent, self.own = others, 0.0, 0.0, 0.0
        self.rounds = 0

    def read(self):
        return Usage(self.now, self.spent, self.own)

    def sleep(self, seconds):
        self.now += seconds
        self.spent += seconds * self.others(self.now)

    def play(self, index):
        self.sleep(0.1)
        self.own += 0.1  # this process keeps one core busy all the time
        self.spent += 0.1
        self.rounds += 1
        return {"torchcalc": float(index)}

    def record(self, patience, rounds, warm_up=0):
        return Watch(patience, self.read, self.sleep).record(self.play, rounds, warm_up)


def test_own_work_does_not_disturb():
    machine = Machine(lambda now: 0.02)
    rounds, reason = machine.record(patience=10.0, rounds=5)
    assert reason is None
    assert [values["torchcalc"] for values in rounds] == list(range(machine.rounds))
    assert 5 <= machine.rounds <= 6


def test_disturbed_rounds_are_measured_again():
    machine = Machine(lambda now: 1.5 if 1.0 < now < 2.0 else 0.0)
    rounds, reason = machine.record(patience=10.0, rounds=20)
    assert reason is None
    assert 20 <= len(rounds) < machine.rounds  # the undisturbed ones, with their indices
    assert [values["torchcalc"] for values in rounds] == list(range(len(rounds)))
    assert machine.now > 3.0


def test_patience_ends():
    machine = Machine(lambda now: 1.5)
    rounds, reason = machine.record(patience=3.0, rounds=5, warm_up=3)
    assert rounds == []
    assert reason.startswith("other processes used 1.5 of ")
    assert 3.0 <= machine.now <= 3.5
    assert machine.rounds == 0  # it was never quiet, so it did not even warm up


def test_patience_ends_between_rounds():
    machine = Machine(lambda now: 1.5 if now > 1.5 else 0.0)
    rounds, reason = machine.record(patience=3.0, rounds=50, warm_up=3)
    assert 0 < len(rounds) < 50
    assert machine.rounds > len(rounds) + 3
    assert reason is not None


def test_proc_stat(monkeypatch):
    monkeypatch.setattr(quiet, "usable_cores", lambda: {0, 2})
    #            user nice system idle iowait irq softirq steal guest guest_nice
    stat = """cpu  9999 9999 9999 9999 9999 9999 9999 9999 9999 9999
cpu0 1 2 4 1000 2000 8 16 32 1 2
cpu1 5000 5000 5000 5000 5000 5000 5000 5000 0 0
cpu2 100 0 0 7 0 0 0 0 0 0
intr 1 2 3
"""
    assert busy_ticks(stat) == 63 + 100


@pytest.mark.skipif(not quiet.STAT.exists(), reason="only Linux says what the cores do")
def test_a_busy_machine_is_not_measured():
    spinning = [
        subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in usable_cores()
    ]
    try:
        config = Config(torch.device("cpu"), repeats=3, watch=Watch(patience=0.5))
        row = config.compare(
            "step", "", "", {"copy": int, "torchcalc": int}, baseline="copy", bound=Bound(2.0)
        )
    finally:
        for process in spinning:
            process.kill()
            process.wait()
    assert row.not_measured.startswith("other processes used ")
    assert row.passed is None
