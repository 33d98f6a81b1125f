"""The README's tables of results: ``python -m benchmarks.readme RESULTS.json`` prints them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

_FAMILIES = ("dropout", "linear_act", "optim", "memory", "import")


def table(results: dict[str, Any]) -> str:
    """A Markdown table of the rows that have a bound."""
    lines = [
        "| what | compared with | eager | torch.compile | torchcalc | bound |",
        "|---|---|---|---|---|---|",
    ]
    for row in results["rows"]:
        if row["must"] is None or row["family"] not in _FAMILIES:
            continue
        cells = [
            _name(row),
            row["baseline"] or row["unit"],
            _figure(row, "eager"),
            _figure(row, "torch.compile"),
            f"**{_figure(row, 'torchcalc')}**",
            f"{row['must']:g}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def calls_table(results: dict[str, Any]) -> str:
    """A Markdown table of what calls cost; empty where the results have none."""
    rows = [row for row in results["rows"] if row["family"] == "calls" and row["must"] is not None]
    lines = ["| call | compared with | torchcalc | bound | aim |", "|---|---|---|---|---|"]
    lines += [
        f"| {row['name']} | {row['baseline']} | **{_figure(row, 'torchcalc')}** "
        f"| {row['must']:g} | {row['aim']:g} |"
        for row in rows
    ]
    return "\n".join(lines) if rows else ""


def _name(row: dict[str, Any]) -> str:
    family = {"linear_act": "linear + gelu + dropout ", "dropout": "dropout "}
    prefix = family.get(row["family"], "saved, " if row["family"] == "memory" else "")
    details = ", ".join(part for part in (row["sizes"], row["dtype"]) if part)
    return f"{prefix}{row['name']}" + (f", {details}" if details else "")


def _figure(row: dict[str, Any], contender: str) -> str:
    entry = row["contenders"].get(contender)
    if entry is None:
        return ""
    if row.get("not_measured"):
        return "not measured"
    return f"{entry.get('ratio', entry['median']):.3g}"


if __name__ == "__main__":
    recorded = json.loads(Path(sys.argv[1]).read_text())
    print(table(recorded), calls_table(recorded), sep="\n\n")
