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
        for reason in dict.fromkeys(row.not_measured for row in rows if row.not_measured):
            names = "; ".join(_name(row) for row in rows if row.not_measured == reason)
            print(f"Not measured because {reason}: {names}.")
    for line in summary(results):
        print(line)


def summary(results: Results) -> list[str]:
    """Each family's worst row, how many bounds are met, and how many rows are without figures."""
    rows = [row for family_rows in results.values() for row in family_rows]
    bounded = [row for row in rows if row.bound]
    lines = worst_rows(results)
    if bounded:
        missed = sum(row.passed is False for row in bounded)
        open_ = sum(row.passed is None for row in bounded)
        counts = [f"{len(bounded) - missed - open_} of {len(bounded)} bounds are met"]
        counts += [f"{missed} missed"] * bool(missed) + [f"{open_} not measured"] * bool(open_)
        lines.append(", ".join(counts) + ".")
    unmeasured = sum(row.not_measured is not None for row in rows)
    if unmeasured:
        lines.append(f"{unmeasured} of {len(rows)} rows were not measured.")
    return lines


def worst_rows(results: Results) -> list[str]:
    """Of each family the row with the largest share of its bound; the worst family first."""
    found = []
    for family, rows in results.items():
        shares = [(row.share_of_bound, row) for row in rows]
        measured = [(share, row) for share, row in shares if share is not None]
        if measured:
            share, row = max(measured, key=lambda pair: pair[0])
            assert row.bound is not None
            figure = f"{share * row.bound.must:.3g} of {row.bound.must:.4g}"
            line = f"{family}, worst of {len(measured)}: {_name(row)}: {figure}"
            found.append((share, line + " MISSED" * (row.passed is False)))
    return [line for _, line in sorted(found, key=lambda pair: -pair[0])]


def _name(row: Row) -> str:
    return " ".join(filter(None, (row.name, row.sizes, row.dtype)))


def _table(rows: list[Row]) -> tuple[list[str], list[list[str]]]:
    contenders = list(dict.fromkeys(name for row in rows for name in row.compared))
    header = ["", "baseline", *contenders, "must", "aim", "bound", "share of roof"]
    lines = [_line(row, contenders) for row in rows]
    used = [any(column) for column in zip(*lines, strict=True)]
    return list(compress(header, used)), [list(compress(line, used)) for line in lines]


# Cells have two lines, or one where there is less to say.
def _line(row: Row, contenders: Iterable[str]) -> list[str]:
    measured = not row.not_measured
    share = measured and row.roof
    return [
        f"{row.name}\n{' '.join((row.sizes, row.dtype))}".strip(),
        f"{row.baseline}\n{row.value_name(row.baseline) if measured else ''}".strip()
        if row.baseline
        else "",
        *(_cell(row, name) for name in contenders),
        f"{row.bound.must:.4g}" if row.bound else "",
        f"{row.bound.aim:.4g}" if row.bound and row.bound.aim else "",
        _verdict(row),
        f"{row.share(SUBJECT):.0%}\nof {row.roof_rate:.3g} {row.roof.unit}" if share else "",
    ]


def _cell(row: Row, contender: str) -> str:
    if contender not in row.rounds:
        return ""
    if row.not_measured:
        return "not\nmeasured" if contender in row.subjects else ""
    value = row.value_name(contender)
    return f"{row.figure(contender):.2f}x\n{value}" if row.baseline else value


def _verdict(row: Row) -> str:
    if row.bound is None or row.not_measured:
        return ""
    if not row.passed:
        return "MISSED"
    return "met, aim\ntoo" if row.bound.aim and row.within(row.bound.aim) else "met"


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
        style = "red" if "MISSED" in line else "dim" if "not\nmeasured" in line else None
        table.add_row(*line, style=style)
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
