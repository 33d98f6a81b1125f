"""What fuse did with a model, as data and as a table."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Fusion:
    """One call in the forward of the module at ``path`` that takes the place of several.

    ``kept_before`` and ``kept_after`` are the bytes that autograd keeps of what is made there while
    training: for a token (a row of x) where there is a linear layer, else for an element.
    """

    path: str
    op: str  # the function of torchcalc.functional
    what: str  # as "linear + gelu + dropout"
    modules: tuple[str, ...]  # paths of those whose parameters are used without calling them
    kept_before: float
    kept_after: float


@dataclass(frozen=True)
class Left:
    """What was left as it is, and why."""

    path: str
    what: str
    why: str


@dataclass(frozen=True)
class Report:
    """``print(report)`` shows it as tables, modules that differ by a number in one line."""

    fused: tuple[Fusion, ...]
    left: tuple[Left, ...]

    def __str__(self) -> str:
        if not self.fused:
            parts = ["Nothing to fuse."]
        else:
            header = ("path", "what", "op", "bytes kept, before", "after")
            lines = ((f.path, f.what, f.op, *_bytes(f)) for f in self.fused)
            parts = [f"Fused, {len(self.fused)} in all:", _table(header, _merged(lines))]
        if self.left:
            rows = ((each.path, each.what, each.why) for each in self.left)
            parts += [
                "",
                f"Left as they are, {len(self.left)} in all:",
                _table(("path", "what", "why"), _merged(rows)),
            ]
        return "\n".join(parts)


def _bytes(fusion: Fusion) -> tuple[str, str]:
    of = "element" if fusion.op.startswith(("dropout", "alpha", "feature")) else "token"
    return f"{_number(fusion.kept_before)} / {of}", _number(fusion.kept_after)


def _number(bytes_kept: float) -> str:
    return f"{bytes_kept:.4g}" if bytes_kept >= 0.01 else "0"


def _merged(rows: Iterable[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Rows with the same numbers where their first cells differ by digits: layer.{0..11}.mlp."""
    groups: dict[tuple[str, ...], list[list[int]]] = {}
    for path, *rest in rows:
        parts = path.split(".")
        numbers = [int(part) for part in parts if part.isdecimal()]
        shape = ".".join("{}" if part.isdecimal() else part for part in parts)
        groups.setdefault((shape, *rest), []).append(numbers)
    return [
        (shape.format(*map(_span, zip(*numbers, strict=True))) or "(the model)", *rest)
        for (shape, *rest), numbers in groups.items()
    ]


def _span(numbers: Iterable[int]) -> str:
    found = sorted(set(numbers))
    if len(found) == 1:
        return str(found[0])
    if found == list(range(found[0], found[-1] + 1)):
        return f"{{{found[0]}..{found[-1]}}}"
    return "{" + ",".join(map(str, found)) + "}"


def _table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]

    def lines() -> Iterator[str]:
        for row in itertools.chain([header, tuple("-" * width for width in widths)], rows):
            cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            yield "  " + "  ".join(cells).rstrip()

    return "\n".join(lines())
