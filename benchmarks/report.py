"""Results as tables and as JSON."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterable, Mapping
from itertools import compress
from typing import Any

from benchmarks.harness import SUBJECT, Row

Results = Mapping[str, list[Row]]  # by family


def to_json(machine: dict[str, Any], results: Results) -> str:
    """One line a row, so that a diff shows which have changed."""
    rows = ",\n    ".join(
        json.dumps({"family": family, **row.to_json()})
        for family, family_rows in results.items()
        for row in family_rows
    )
    head = json.dumps(machine, indent=2).removesuffix("\n}")
    return f'{head},\n  "rows": [\n    {rows}\n  ]\n}}\n'


def print_tables(results: Results) -> None:
    show = _print_rich if importlib.util.find_spec("rich") else _print_plain
    for family, rows in results.items():
        show(family, *_table(rows))
    bounded = [row for rows in results.values() for row in rows if row.bound]
    if bounded:
        print(f"{sum(bool(row.passed) for row in bounded)} of {len(bounded)} bounds are met.")


def _table(rows: list[Row]) -> tuple[list[str], list[list[str]]]:
    contenders = list(dict.fromkeys(name for row in rows for name in row.compared))
    header = ["", "baseline", *contenders, "must", "aim", "bound", "share of roof"]
    lines = [_line(row, contenders) for row in rows]
    used = [any(column) for column in zip(*lines, strict=True)]
    return list(compress(header, used)), [list(compress(line, used)) for line in lines]


# Cells have two lines, or one where there is less to say.
def _line(row: Row, contenders: Iterable[str]) -> list[str]:
    return [
        f"{row.name}\n{' '.join((row.sizes, row.dtype))}".strip(),
        f"{row.baseline}\n{row.value_name(row.baseline)}" if row.baseline else "",
        *(_cell(row, name) for name in contenders),
        f"{row.bound.must:.4g}" if row.bound else "",
        f"{row.bound.aim:.4g}" if row.bound and row.bound.aim else "",
        _verdict(row),
        f"{row.ratio(row.roof.contender, SUBJECT):.0%}\nof {row.roof_rate:.3g} {row.roof.unit}"
        if row.roof
        else "",
    ]


def _cell(row: Row, contender: str) -> str:
    if contender not in row.rounds:
        return ""
    value = row.value_name(contender)
    return f"{row.figure(contender):.2f}x\n{value}" if row.baseline else value


def _verdict(row: Row) -> str:
    if row.bound is None:
        return ""
    if not row.passed:
        return "MISSED"
    aim = row.bound.aim
    return "met, aim\ntoo" if aim and row.figure(SUBJECT) <= aim else "met"


def _print_rich(title: str, header: list[str], lines: list[list[str]]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    table = Table(
        title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, padding=(0, 1, 1, 0)
    )
    for column, name in enumerate(header):
        style = "bold" if name == SUBJECT else None
        table.add_column(name, justify="right" if column else "left", style=style)
    for line in lines:
        table.add_row(*line, style="red" if "MISSED" in line else None)
    console = Console()
    if not console.is_terminal:
        console.width = 120
    console.print(table)


def _print_plain(title: str, header: list[str], lines: list[list[str]]) -> None:
    lines = [[cell.replace("\n", " ") for cell in line] for line in lines]
    widths = [max(map(len, column)) for column in zip(header, *lines, strict=True)]
    print(f"\n{title}")
    for line in (header, *lines):
        first, *rest = (cell.rjust(width) for cell, width in zip(line, widths, strict=True))
        print("  ".join([line[0].ljust(len(first)), *rest]).rstrip())
