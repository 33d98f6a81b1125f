"""Runs the tasks of the families, each in a process of its own unless it says otherwise."""

from __future__ import annotations

import importlib.util
import math
import multiprocessing
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import count, groupby
from multiprocessing.connection import Connection

import torch

from benchmarks import (
    bench_activations,
    bench_calls,
    bench_dropout,
    bench_dtypes,
    bench_epilogue,
    bench_gated,
    bench_import,
    bench_linear_act,
    bench_memory,
    bench_mlp,
    bench_models,
    bench_optim,
    bench_penalties,
    bench_penalty,
    bench_prox,
    bench_shapes,
    bench_vmap,
)
from benchmarks.harness import SUBJECT, Config, Row, Task
from benchmarks.quiet import Watch

FAMILIES = {
    "dropout": bench_dropout,
    "linear_act": bench_linear_act,
    "activations": bench_activations,
    "shapes": bench_shapes,
    "gated": bench_gated,
    "mlp": bench_mlp,
    "vmap": bench_vmap,
    "models": bench_models,
    "epilogue": bench_epilogue,
    "optim": bench_optim,
    "prox": bench_prox,
    "memory": bench_memory,
    "import": bench_import,
    "calls": bench_calls,
    "dtypes": bench_dtypes,
    "penalty": bench_penalty,
    "penalties": bench_penalties,
}
SPAWN = multiprocessing.get_context("spawn")
POLL = 0.3  # seconds between two looks at what a row's process does


def run(config: Config, families: list[str]) -> dict[str, list[Row]]:
    """The rows of each family.

    Memory that one row has freed makes allocation several times cheaper for the next, so the order
    of the rows would show: a fresh process each, unless the row does not depend on it, or times
    mean nothing anyway. On a GPU that is not so: a process for each family.
    """
    end = time.monotonic() + config.limit
    tasks = {name: FAMILIES[name].tasks(config) for name in families}
    results: dict[str, list[Row]] = {name: [] for name in families}
    measure = run_here if config.quick else partial(run_apart, end=end)
    with progress(sum(map(len, tasks.values())), config.watch) as show:
        for name in families:
            for batch in [tasks[name]] if config.gpu is not None else batches(tasks[name]):
                results[name] += measure(batch, show)
    return results


def batches(tasks: list[Task]) -> list[list[Task]]:
    """The tasks in order, those that share a process together."""
    alone = count()
    groups = groupby(tasks, lambda task: next(alone) if task.alone else "together")
    return [list(group) for _, group in groups]


def run_task(task: Task) -> Row:
    torch.manual_seed(0)
    return task.run()


def run_here(tasks: list[Task], show: Callable[..., None]) -> Iterator[Row]:
    for task in tasks:
        show(task.name)
        yield run_task(task)


def run_apart(tasks: list[Task], show: Callable[..., None], end: float = math.inf) -> Iterator[Row]:
    """The tasks' rows, measured in one new process, and in another one where it ends too early.

    What is not measured at the time ``end`` never will be.
    """
    left = list(tasks)
    while left and time.monotonic() < end:
        ours, theirs = SPAWN.Pipe(duplex=False)
        process = SPAWN.Process(target=_send_rows, args=(left, theirs))
        process.start()
        theirs.close()  # else the end of the process would not end the pipe
        try:
            while left:
                show(left[0].name)
                if not _arrives(ours, show, end):
                    break
                yield ours.recv()
                left.pop(0)
        except EOFError:
            process.join()
            reason = f"its process ended with exit code {process.exitcode}"
            yield _without_figures(left.pop(0), reason, failed=True)
        if left:
            process.kill()
        process.join()  # so that its end does not disturb the next
    for task in left:
        yield _without_figures(task, "there was no time left", failed=False)


def _arrives(pipe: Connection, show: Callable[..., None], end: float) -> bool:
    """Whether a row does, before ``end``."""
    while not pipe.poll(POLL):
        show()
        if time.monotonic() >= end:
            return False
    return True


def _send_rows(tasks: list[Task], pipe: Connection) -> None:
    for task in tasks:
        try:
            row = run_task(task)
        except Exception as error:
            traceback.print_exc()
            reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            row = _without_figures(task, reason, failed=True)
        pipe.send(row)


def _without_figures(task: Task, reason: str, failed: bool) -> Row:
    return Row(task.name, "", "", {SUBJECT: []}, not_measured=reason, failed=failed)


@contextmanager
def progress(total: int, watch: Watch | None) -> Iterator[Callable[..., None]]:
    """Gives a function to call with the name of each task that starts, and without in between.

    It shows a bar if there is a terminal for it, and there, that rounds wait for quiet.
    """
    if not sys.stderr.isatty() or importlib.util.find_spec("rich") is None:
        yield lambda description="": None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=total, completed=-1)
        name, left = "", watch.left if watch else 0.0

        def show(description: str = "") -> None:
            nonlocal name, left
            name = description or name
            before, left = left, watch.left if watch else 0.0
            waiting = f" (the cores are busy; waiting for {left:.0f} s at most)"
            bar.update(
                task, advance=bool(description), description=name + waiting * (left < before)
            )

        yield show
