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
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tools.gpu.tests import read


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--records", type=Path, required=True)
    parser.addoption("--hang", type=float, required=True)


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Records(config), "records")


class Records:
    def __init__(self, config: pytest.Config) -> None:
        self.path, self.hang = config.option.records, config.option.hang
        self.done = {record["test"] for record in read(self.path) if "test" in record}
        self.reports = not hasattr(config, "workerinput")  # of xdist, whose controller reports
        self.stacks = self.path.with_suffix(".hang.txt").open("a")

    def write(self, **record: Any) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(record) + "\n")

    def pytest_collection_modifyitems(
        self, config: pytest.Config, items: list[pytest.Item]
    ) -> None:
        known = [item for item in items if item.nodeid in self.done]
        items[:] = [item for item in items if item.nodeid not in self.done]
        config.hook.pytest_deselected(items=known)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        faulthandler.dump_traceback_later(self.hang, exit=True, file=self.stacks)
        try:
            return (yield)
        finally:
            faulthandler.cancel_dump_traceback_later()

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        if self.reports:
            self.write(start=nodeid)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if self.reports and (report.when == "call" or not report.passed):
            self.report(report)
            if report.failed and not gpu_answers():
                self.write(lost=report.nodeid)
                os._exit(1)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if self.reports and not report.passed and report.nodeid not in self.done:
            self.report(report)

    def report(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        text = report.longreprtext
        if report.skipped and isinstance(report.longrepr, tuple):
            text = report.longrepr[2].removeprefix("Skipped: ")
        self.write(test=report.nodeid, outcome=report.outcome, text=text)

    def pytest_sessionfinish(self, exitstatus: int) -> None:
        if self.reports:
            self.write(end=int(exitstatus))


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
