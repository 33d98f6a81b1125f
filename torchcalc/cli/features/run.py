"""Trains for every strength and seed, prints what survives and writes the files."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from statistics import mean
from typing import Any

from rich.console import Console
from rich.table import Table

from torchcalc.cli import console
from torchcalc.cli.features import plots, selection, tables
from torchcalc.cli.features.selection import Fit
from torchcalc.cli.features.settings import LAMS, Settings

Fits = dict[float, list[Fit]]  # by strength, 0 for the dense model; one for each seed


@dataclass(frozen=True)
class Input:
    """Over the seeds: in how many it survives, and the mean norm of its weights."""

    name: str
    seeds: int
    norm: float


def run(settings: Settings) -> int:
    """The folder ``settings.out`` is there already."""
    table = tables.load(settings.data)
    with console.one_thread():
        fits = _fit_all(settings, table)
    if settings.lam is not None:
        lam = settings.lam
    else:
        losses = {lam: [fit.validation_loss for fit in of_lam] for lam, of_lam in fits.items()}
        lam = selection.one_standard_error(losses)
    inputs = _inputs(table.names, fits[lam])
    report = _report(settings, table.names, fits, lam, inputs)
    out = settings.out
    (out / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    plots.bars(
        [each.name for each in inputs],
        [each.norm for each in inputs],
        [each.seeds for each in inputs],
        len(settings.seeds),
        out / "features.png",
    )
    _print(settings, report, inputs)
    return 0


def _fit_all(settings: Settings, table: tables.Table) -> Fits:
    lams = LAMS if settings.lam is None else (settings.lam,)
    fits: Fits = {lam: [] for lam in (0.0, *lams)}
    with console.progress("fits") as progress:
        bar = progress.add_task("", total=len(fits) * len(settings.seeds))
        for seed in settings.seeds:
            parts = tables.split(table, seed)
            for lam, of_lam in fits.items():
                progress.update(bar, description=f"seed {seed}, lam {lam:g}", refresh=True)
                of_lam.append(selection.fit(parts, table.classes, lam, seed, settings))
                progress.update(bar, advance=1, refresh=True)
    return fits


def _inputs(names: tuple[str, ...], fits: list[Fit]) -> list[Input]:
    """Those that survive most often first, then by norm."""
    inputs = [
        Input(name, sum(i in fit.selected for fit in fits), mean(fit.norms[i] for fit in fits))
        for i, name in enumerate(names)
    ]
    return sorted(inputs, key=lambda each: (-each.seeds, -each.norm))


def _summary(fits: list[Fit]) -> dict[str, float]:
    losses = [fit.validation_loss for fit in fits]
    return {
        "accuracy": mean(fit.accuracy for fit in fits),
        "inputs": mean(len(fit.selected) for fit in fits),
        "jaccard": selection.jaccard([fit.selected for fit in fits]),
        "validation_loss": mean(losses),
        "standard_error": selection.standard_error(losses),
    }


def _report(
    settings: Settings, names: tuple[str, ...], fits: Fits, lam: float, inputs: list[Input]
) -> dict[str, Any]:
    options = asdict(settings)
    del options["out"], options["seeds"]
    return {
        "dense": _summary(fits[0.0]),
        "selected": _summary(fits[lam]),
        "lam": lam,
        "inputs": {each.name: {"seeds": each.seeds, "norm": each.norm} for each in inputs},
        "path": [{"lam": each, **_summary(of_lam)} for each, of_lam in fits.items()],
        "per_seed": [
            {
                "seed": seed,
                "selected": [names[i] for i in sorted(chosen.selected)],
                "accuracy": chosen.accuracy,
                "dense_accuracy": dense.accuracy,
            }
            for seed, chosen, dense in zip(settings.seeds, fits[lam], fits[0.0], strict=True)
        ],
        "seeds": settings.seeds,
        "settings": options,
    }


def _print(settings: Settings, report: dict[str, Any], inputs: list[Input]) -> None:
    seeds, lam = len(settings.seeds), report["lam"]
    table = Table(title=f"mean of {seeds} seeds" if seeds > 1 else "one seed", title_justify="left")
    table.add_column("")
    for name in ("dense", "selected"):
        table.add_column(name, justify="right")
    for label, key, text in (("test accuracy", "accuracy", "{:.1%}"), ("inputs", "inputs", "{:g}")):
        table.add_row(label, *(text.format(report[name][key]) for name in ("dense", "selected")))
    survivors = Table(
        title=f"{settings.data}: inputs that survive, lam {lam:g}", title_justify="left"
    )
    survivors.add_column("input")
    survivors.add_column("seeds", justify="right")
    survivors.add_column("mean norm", justify="right")
    for each in inputs:
        if each.seeds:
            survivors.add_row(each.name, f"{each.seeds} of {seeds}", f"{each.norm:.2g}")
    printed = Console()
    printed.print(survivors)
    printed.print(table)
    gone = [each.name for each in inputs if not each.seeds]
    print(f"exactly zero in every seed: {', '.join(gone) or 'none'}")
    print(f"stability: {report['selected']['jaccard']:.2f}, the mean Jaccard index of two seeds")
    print(f"{settings.out / 'report.json'}: these figures, also of each seed and strength")
    print(f"{settings.out / 'features.png'}: norms of the inputs' weights")
