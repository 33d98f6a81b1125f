"""The README's table of results: ``python -m benchmarks.readme RESULTS.json`` prints it."""

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
        contenders = row["contenders"]
        cells = [
            _name(row),
            row["baseline"] or row["unit"],
            _figure(contenders.get("eager")),
            _figure(contenders.get("torch.compile")),
            f"**{_figure(contenders['torchcalc'])}**",
            f"{row['must']:g}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _name(row: dict[str, Any]) -> str:
    family = {"linear_act": "linear + gelu + dropout ", "dropout": "dropout "}
    prefix = family.get(row["family"], "saved, " if row["family"] == "memory" else "")
    details = ", ".join(part for part in (row["sizes"], row["dtype"]) if part)
    return f"{prefix}{row['name']}" + (f", {details}" if details else "")


def _figure(contender: dict[str, Any] | None) -> str:
    if contender is None:
        return ""
    return f"{contender.get('ratio', contender['median']):.3g}"


if __name__ == "__main__":
    print(table(json.loads(Path(sys.argv[1]).read_text())))
