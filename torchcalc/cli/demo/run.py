"""Trains the models for every seed, prints the table and writes the files."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from statistics import mean

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from torchcalc.cli import console
from torchcalc.cli.demo import costs, digits, models, plots, training
from torchcalc.cli.demo.digits import Split
from torchcalc.cli.demo.settings import Settings
from torchcalc.cli.demo.training import Figures, Run
from torchcalc.sparsity import compact

# By model; one for each seed:
Runs = dict[str, list[Run]]  # of "dense", "sparse" and "group_sparse"
AllFigures = dict[str, list[Figures]]  # of these and "compacted"
Means = dict[str, Figures]


def run(settings: Settings) -> int:
    """The demo; the folder ``settings.out`` is there already."""
    with console.one_thread():
        runs, compacted, figures = _train_all(settings)
    out = settings.out
    means = {
        name: {key: mean(seed[key] for seed in of_model) for key in of_model[0]}
        for name, of_model in figures.items()
    }
    _write_report(settings, means, figures, compacted)
    dense, sparse = (runs[name][0].model.cpu() for name in ("dense", "sparse"))
    torch.save(sparse.state_dict(), out / "sparse.pt")
    torch.save(compacted.cpu().state_dict(), out / "compacted.pt")
    plots.training(runs, out / "training.png")
    plots.weights(dense, sparse, out / "weights.png")
    plots.compacted(means, out / "compacted.png")
    Console().print(_table(settings, means))
    _print_files(out, f"seed {settings.seeds[0]}")
    return 0


def _train_all(settings: Settings) -> tuple[Runs, nn.Module, AllFigures]:
    """All runs, the first seed's compacted model, all figures."""
    data = digits.load(settings.device)
    runs: Runs = {"dense": [], "sparse": [], "group_sparse": []}
    first = None
    figures: AllFigures = {**{name: [] for name in runs}, "compacted": []}
    progress = console.progress("steps")
    with progress:
        bar = progress.add_task("", total=len(runs) * len(settings.seeds) * settings.steps)
        for seed in settings.seeds:
            order = digits.batches(len(data[0].y), settings.steps, settings.batch_size, seed)
            order = order.to(settings.device)
            torch.manual_seed(seed)
            dense = models.dense()  # on the CPU, so that each device starts with the same
            trained: dict[str, nn.Module] = {
                "dense": dense,
                "sparse": models.sparse_like(dense),
                "group_sparse": models.sparse_like(dense),
            }
            for name, model in trained.items():
                progress.update(bar, description=f"seed {seed}, {plots.NAMES[name]}", refresh=True)
                model.to(settings.device)

                def advance(steps: int) -> None:
                    progress.update(bar, advance=steps, refresh=True)

                optimizer = _optimizer(name, model, settings)
                runs[name].append(training.train(model, optimizer, data, order, seed, advance))
            smaller = compact(trained["group_sparse"])
            first = first or smaller
            of_training = {name: runs[name][-1].figures for name in trained}
            for name, of_model in _measure({**trained, "compacted": smaller}, data[1]).items():
                figures[name].append({**of_model, **of_training.get(name, {})})
    assert first is not None  # there is a seed
    return runs, first, figures


def _optimizer(name: str, model: nn.Module, settings: Settings) -> torch.optim.Optimizer:
    if name == "dense":
        return models.dense_optimizer(model, settings.lr)
    if name == "sparse":
        return models.sparse_optimizer(model, settings.lr, settings.lam)
    return models.group_optimizer(model, settings.lr, settings.group_lam)


def _measure(finished: dict[str, nn.Module], test_set: Split) -> dict[str, Figures]:
    """What can be told of any model, however it was made."""
    times = costs.ms_per_batch(finished, test_set.x)
    return {
        name: {
            "accuracy": training.accuracy(model, test_set),
            "zero_fraction": training.zero_fraction(model),
            **costs.size(model),
            "ms_per_batch": times[name],
        }
        for name, model in finished.items()
    }


def _write_report(
    settings: Settings, means: Means, figures: AllFigures, compacted: nn.Module
) -> None:
    options = {**asdict(settings), "device": str(settings.device)}
    del options["out"], options["seeds"]
    report = {
        **means,
        "seeds": settings.seeds,
        "settings": options,
        "inference_batch": costs.BATCH,
        # of compacted.pt: LinearAct layers, as torchcalc.cli.demo.models.sparse(widths) makes them
        "architecture": {"widths": models.widths(compacted), "activation": "gelu"},
        "per_seed": figures,
    }
    (settings.out / "report.json").write_text(json.dumps(report, indent=2) + "\n")


def _table(settings: Settings, means: Means) -> Table:
    table = Table(
        title=f"{settings.steps} steps of {settings.batch_size} digits "
        f"on {settings.device}, {console.told(settings.seeds)}",
        title_justify="left",
    )
    table.add_column("")
    for name in means:
        table.add_column(plots.NAMES[name], justify="right", no_wrap=True)
    for label, key, text in (
        ("test accuracy", "accuracy", "{:.1%}"),
        ("exactly zero weights", "zero_fraction", "{:.1%}"),
        ("hidden neurons", "hidden_neurons", "{:.0f}"),
        ("parameters", "parameters", "{:,.0f}"),
        ("size (bytes)", "bytes", "{:,.0f}"),
        (f"inference (ms per {costs.BATCH})", "ms_per_batch", "{:.2f}"),
        ("training (ms per step)", "ms_per_step", "{:.2f}"),
        ("saved for backward (bytes)", "saved_bytes_per_step", "{:,.0f}"),
    ):
        cells = (text.format(of[key]) if key in of else "-" for of in means.values())
        table.add_row(label, *cells)
    return table


def _print_files(out: Path, first: str) -> None:
    for name, content in (
        ("report.json", "these figures, also of each seed"),
        ("sparse.pt", f"the L1 model's state_dict, {first}"),
        ("compacted.pt", f"the compacted model's state_dict, {first}"),
        ("compacted.png", "accuracy, size and inference time of the four models"),
        ("training.png", "accuracy and zeros over the steps"),
        ("weights.png", f"the first layer's weights as pictures, {first}"),
    ):
        print(f"{out / name}: {content}")
