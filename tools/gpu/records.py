"""pytest -p tools.gpu.records --records FILE: what each test does, a JSON line each, at once.

Tests that FILE knows are left out, so that after a crash or a hang another pytest goes on behind
it. A test that takes longer than --hang seconds ends the process; so does one after which the GPU
answers no more, because every later one would fail, too.
"""

from __future__ import annotations

import faulthandler
import json
import os
import sys
from collections import Counter
from collections.abc import Iterator
from itertools import compress
from pathlib import Path
from typing import Any

import pytest

from tools.gpu.tests import read


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--records", type=Path, required=True)
    parser.addoption("--hang", type=float, required=True)
    parser.addoption("--shard", required=True, help="k/n: the k-th of n lots of files")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Records(config), "records")


class Records:
    def __init__(self, config: pytest.Config) -> None:
        self.path, self.hang = config.option.records, config.option.hang
        self.done = {record["test"] for record in read(self.path) if "test" in record}
        self.shard, self.shards = map(int, config.option.shard.split("/"))
        self.stacks = self.path.with_suffix(".hang.txt").open("a")

    def write(self, **record: Any) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(record) + "\n")

    def pytest_collection_modifyitems(
        self, config: pytest.Config, items: list[pytest.Item]
    ) -> None:
        lots = share_out(Counter(item.path for item in items), self.shards)
        mine = [item.nodeid not in self.done and lots[item.path] == self.shard for item in items]
        config.hook.pytest_deselected(
            items=[i for i, own in zip(items, mine, strict=True) if not own]
        )
        items[:] = compress(items, mine)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        faulthandler.dump_traceback_later(self.hang, exit=True, file=self.stacks)
        try:
            return (yield)
        finally:
            faulthandler.cancel_dump_traceback_later()

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.write(start=nodeid)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or not report.passed:
            self.report(report)
            if report.failed and not gpu_answers():
                self.write(lost=report.nodeid)
                os._exit(1)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if not report.passed and report.nodeid not in self.done:
            self.report(report)

    def report(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        text = report.longreprtext
        if report.skipped and isinstance(report.longrepr, tuple):
            text = report.longrepr[2].removeprefix("Skipped: ")
        self.write(test=report.nodeid, outcome=report.outcome, text=text)

    def pytest_sessionfinish(self, exitstatus: int) -> None:
        self.write(end=int(exitstatus))


def share_out(sizes: Counter[Path], count: int) -> dict[Path, int]:
    """A lot for each file, the same in every process: fixtures of a module are made once."""
    loads, lots = [0] * count, {}
    for path, size in sizes.most_common():
        lots[path] = loads.index(min(loads))
        loads[lots[path]] += size
    return lots


def gpu_answers() -> bool:
    """Whether the CUDA context, if there is one, has survived: an illegal access ends it."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return True
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return False
    return True
