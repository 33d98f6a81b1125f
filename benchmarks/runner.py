"""Runs the tasks of the families, each row in a process of its own."""

from __future__ import annotations

import importlib.util
import multiprocessing
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager

import torch

from benchmarks import (
    bench_dropout,
    bench_import,
    bench_linear_act,
    bench_memory,
    bench_optim,
    bench_prox,
)
from benchmarks.harness import Config, Row, Task

FAMILIES = {
    "dropout": bench_dropout,
    "linear_act": bench_linear_act,
    "optim": bench_optim,
    "prox": bench_prox,
    "memory": bench_memory,
    "import": bench_import,
}


def run(config: Config, families: list[str]) -> dict[str, list[Row]]:
    """The rows of each family.

    Memory that one row has freed makes allocation several times cheaper for the next, so the order
    of the rows would show: a fresh process each, unless times mean nothing anyway.
    """
    results: dict[str, list[Row]] = {name: [] for name in families}
    tasks = [(name, task) for name in families for task in FAMILIES[name].tasks(config)]
    measure = run_task if config.quick else run_isolated
    with progress(len(tasks)) as start:
        for name, task in tasks:
            start(f"{name}: {task.name}")
            results[name].append(measure(task))
    return results


def run_task(task: Task) -> Row:
    torch.manual_seed(0)
    return task.run()


def run_isolated(task: Task) -> Row:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(run_task, task).result()


@contextmanager
def progress(total: int) -> Iterator[Callable[[str], None]]:
    """Gives a function to call at the start of each task; a bar if there is a terminal for it."""
    if not sys.stderr.isatty() or importlib.util.find_spec("rich") is None:
        yield lambda description: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=total, completed=-1)
        yield lambda description: bar.update(task, advance=1, description=description)
