"""What commands that train models share: how a CPU computes, a progress bar, how seeds are told."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn


@contextmanager
def plain_cpu() -> Iterator[None]:
    """One thread, no subnormal numbers.

    Matrices this small gain nothing from more threads, and so a CPU's results do not depend on it.
    Weights in a group that is dying may become subnormal, which makes a product ten times slower.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)
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
