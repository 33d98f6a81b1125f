"""Trains both models for every seed, prints the table and writes the files."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from statistics import mean

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from torchcalc.cli.demo import digits, models, plots, training
from torchcalc.cli.demo.settings import Settings
from torchcalc.cli.demo.training import Figures, Run

# By model, "dense" or "sparse":
Runs = dict[str, list[Run]]  # one for each seed
Means = dict[str, Figures]


def run(settings: Settings) -> int:
    """The demo; the folder ``settings.out`` is there already."""
    with _one_thread():
        runs = _train_all(settings)
    out = settings.out
    figures = {name: [run.figures for run in of_model] for name, of_model in runs.items()}
    means = {
        name: {key: mean(seed[key] for seed in of_model) for key in of_model[0]}
        for name, of_model in figures.items()
    }
    _write_report(settings, means, figures)
    dense, sparse = (runs[name][0].model.cpu() for name in ("dense", "sparse"))
    torch.save(sparse.state_dict(), out / "sparse.pt")
    plots.training(runs, out / "training.png")
    plots.weights(dense, sparse, out / "weights.png")
    Console().print(_table(settings, means))
    first = f"seed {settings.seeds[0]}"
    print(f"{out / 'report.json'}: these figures, also of each seed")
    print(f"{out / 'sparse.pt'}: the sparse model's state_dict, {first}")
    print(f"{out / 'training.png'}: accuracy and zeros over the steps")
    print(f"{out / 'weights.png'}: the first layer's weights as pictures, {first}")
    return 0


@contextmanager
def _one_thread() -> Iterator[None]:
    """Matrices this small gain nothing from more, and so a CPU's results do not depend on it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _train_all(settings: Settings) -> Runs:
    data = digits.load(settings.device)
    runs: Runs = {"dense": [], "sparse": []}
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:.0f}/{task.total:.0f} steps"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
        auto_refresh=False,  # no thread that draws into the timings
        disable=not sys.stderr.isatty(),
    )
    with progress:
        bar = progress.add_task("", total=2 * len(settings.seeds) * settings.steps)
        for seed in settings.seeds:
            order = digits.batches(len(data[0].y), settings.steps, settings.batch_size, seed)
            order = order.to(settings.device)
            torch.manual_seed(seed)
            dense = models.dense()  # on the CPU, so that each device starts with the same
            sparse = models.sparse_like(dense)
            for name, model in (("dense", dense), ("sparse", sparse)):
                progress.update(bar, description=f"seed {seed}, {name}", refresh=True)
                model.to(settings.device)
                if name == "dense":
                    optimizer = models.dense_optimizer(model, settings.lr)
                else:
                    optimizer = models.sparse_optimizer(model, settings.lr, settings.lam)

                def advance(steps: int) -> None:
                    progress.update(bar, advance=steps, refresh=True)

                runs[name].append(training.train(model, optimizer, data, order, seed, advance))
    return runs


def _write_report(settings: Settings, means: Means, figures: dict[str, list[Figures]]) -> None:
    options = {**asdict(settings), "device": str(settings.device)}
    del options["out"], options["seeds"]
    report = {**means, "seeds": settings.seeds, "settings": options, "per_seed": figures}
    (settings.out / "report.json").write_text(json.dumps(report, indent=2) + "\n")


def _table(settings: Settings, means: Means) -> Table:
    seeds = ", ".join(map(str, settings.seeds))
    seeds = f"mean of seeds {seeds}" if len(settings.seeds) > 1 else f"seed {seeds}"
    table = Table(
        title=f"{settings.steps} steps of {settings.batch_size} digits "
        f"on {settings.device}, {seeds}",
        title_justify="left",
    )
    table.add_column("")
    table.add_column("dense", justify="right")
    table.add_column("sparse", justify="right")
    for label, key, text in (
        ("test accuracy", "accuracy", "{:.1%}"),
        ("exactly zero weights", "zero_fraction", "{:.1%}"),
        ("time per step (ms)", "ms_per_step", "{:.2f}"),
        ("saved for backward per step (bytes)", "saved_bytes_per_step", "{:,.0f}"),
    ):
        table.add_row(label, *(text.format(means[model][key]) for model in ("dense", "sparse")))
    return table
