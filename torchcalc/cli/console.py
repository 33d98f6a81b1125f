"""What commands that train models share: one thread, a progress bar, how seeds are told."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn


@contextmanager
def one_thread() -> Iterator[None]:
    """Matrices this small gain nothing from more, and so a CPU's results do not depend on it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def progress(unit: str) -> Progress:
    """A bar on a terminal's stderr that counts ``unit``; nothing where that is a pipe."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn(f"{{task.completed:.0f}}/{{task.total:.0f}} {unit}"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
        auto_refresh=False,  # no thread that draws into the timings
        disable=not sys.stderr.isatty(),
    )


def told(seeds: Sequence[int]) -> str:
    named = ", ".join(map(str, seeds))
    return f"mean of seeds {named}" if len(seeds) > 1 else f"seed {named}"
