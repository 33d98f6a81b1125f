"""Seconds that ``import torchcalc`` adds to ``import torch``, each time in a new interpreter."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from pathlib import Path

from benchmarks.harness import SUBJECT, Bound, Config, Row, Task, record

ROOT = Path(__file__).resolve().parent.parent
RUNS = 7
SCRIPT = """
import time, torch
start = time.perf_counter()
import torchcalc
print(time.perf_counter() - start)
"""


def tasks(config: Config) -> list[Task]:
    return [Task("import torchcalc", partial(row, config))]


def row(config: Config) -> Row:
    rounds, reason = record(
        config.watch, [SUBJECT], lambda _: {SUBJECT: seconds()}, 1 if config.quick else RUNS
    )
    bound = None if config.quick else Bound(must=0.15, aim=0.05)
    return Row("import torchcalc", "", "", rounds, "s", bound=bound, not_measured=reason)


def seconds() -> float:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=ROOT, check=True, capture_output=True, text=True
    )
    return round(float(done.stdout), 4)
