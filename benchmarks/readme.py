"""The README's tables of results: ``python -m benchmarks.readme RESULTS.json`` prints them."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_FAMILIES = (
    "dropout", "linear_act", "activations", "shapes", "gated", "mlp", "vmap", "penalties", "memory",
    "import",
)  # fmt: skip
MOST = 4  # rows of a family; where there are more, the worst stands for all of them


def table(results: dict[str, Any]) -> str:
    """A Markdown table of the rows that have a bound, or the worst of them in large families."""
    lines = [
        "| what | compared with | eager | torch.compile | torchcalc | bound |",
        "|---|---|---|---|---|---|",
    ]
    for row, name in _rows(results):
        cells = [
            name,
            row["baseline"] or row["unit"],
            _figure(row, "eager"),
            _figure(row, "torch.compile"),
            f"**{_figure(row, 'torchcalc')}**",
            f"{row['must']:g}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _rows(results: dict[str, Any]) -> Iterator[tuple[dict[str, Any], str]]:
    """The rows of the table and what each is called."""
    bounded = [row for row in results["rows"] if row["must"] is not None]
    for family in _FAMILIES:
        rows = [row for row in bounded if row["family"] == family]
        if len(rows) <= MOST:
            yield from ((row, _name(row)) for row in rows)
        else:
            worst = max(rows, key=_share_of_bound)
            yield worst, f"{family}, worst of {len(rows)}: {_details(worst)}"


def _share_of_bound(row: dict[str, Any]) -> float:
    """What was not measured is the worst."""
    if row["not_measured"]:
        return math.inf
    entries = (row["contenders"][subject] for subject in row["subjects"])
    return max(entry.get("ratio", entry["median"]) for entry in entries) / float(row["must"])


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


def optimizers_table(results: dict[str, Any]) -> str:
    """A Markdown table of optimizers' steps, by what is stepped and in what dtype; each figure with
    its bound. Empty where the results have none."""
    rows = [row for row in results["rows"] if row["family"] == "optim" and row["must"] is not None]
    columns = dict.fromkeys((row["sizes"], row["dtype"]) for row in rows)
    cells: dict[tuple[str, str], dict[tuple[str, str], str]] = {}
    for row in rows:
        figure = f"**{_figure(row, 'torchcalc')}** of {row['must']:g}"
        cells.setdefault((row["name"], row["baseline"]), {})[row["sizes"], row["dtype"]] = figure
    lines = ["| step | compared with | " + " | ".join(map(", ".join, columns)) + " |"]
    lines.append("|---" * (2 + len(columns)) + "|")
    for named, figures in cells.items():
        lines.append("| " + " | ".join([*named, *(figures.get(c, "") for c in columns)]) + " |")
    return "\n".join(lines) if rows else ""


def models_table(results: dict[str, Any]) -> str:
    """A Markdown table of whole models; empty where the results have none."""
    rows = {row["name"]: {} for row in results["rows"] if row["family"] == "models"}
    for row in results["rows"]:
        if row["family"] == "models":
            rows[row["name"]][row["dtype"]] = row
    models = dict.fromkeys(name.partition(",")[0] for name in rows)
    lines = [
        "| model | step, float32 | bound | torch.compile | step, bfloat16 | torch.compile | "
        "kept for backward |",
        "|---|---|---|---|---|---|---|",
    ]
    for model in models:
        steps, kept = rows[f"{model}, training step"], rows[f"{model}, kept for backward"]
        single, half = steps["float32"], steps["bfloat16 autocast"]
        cells = [
            f"{model}, {single['sizes']}",
            f"**{_figure(single, 'torchcalc')}**",
            f"{single['must']:g}",
            _figure(single, "torch.compile"),
            f"**{_figure(half, 'torchcalc')}**",
            _figure(half, "torch.compile"),
            f"**{_figure(kept['float32'], 'torchcalc')}**",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) if models else ""


def _name(row: dict[str, Any]) -> str:
    family = {"linear_act": "linear + gelu + dropout ", "dropout": "dropout "}
    prefix = family.get(row["family"], "saved, " if row["family"] == "memory" else "")
    return prefix + _details(row)


def _details(row: dict[str, Any]) -> str:
    return ", ".join(part for part in (row["name"], row["sizes"], row["dtype"]) if part)


def _figure(row: dict[str, Any], contender: str) -> str:
    entry = row["contenders"].get(contender)
    if entry is None:
        return ""
    if row.get("not_measured"):
        return "not measured"
    return f"{entry.get('ratio', entry['median']):.3g}"


if __name__ == "__main__":
    recorded = json.loads(Path(sys.argv[1]).read_text())
    print(
        table(recorded),
        optimizers_table(recorded),
        calls_table(recorded),
        models_table(recorded),
        sep="\n\n",
    )
