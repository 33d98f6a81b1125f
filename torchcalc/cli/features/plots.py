"""The picture that features leaves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib import colormaps
from matplotlib.figure import Figure

_INK = "#333333"


def bars(
    names: Sequence[str], norms: Sequence[float], counts: Sequence[int], seeds: int, path: Path
) -> None:
    """The mean norm of each input's weights, and in how many seeds they are not all zero."""
    shades = colormaps["Blues"]
    figure = Figure(figsize=(9, 1.4 + 0.26 * len(names)), dpi=150, layout="constrained")
    ax = figure.subplots()
    colors = [shades(0.25 + 0.6 * count / seeds) for count in counts]
    drawn = ax.barh(range(len(names)), norms, color=colors)
    labels = [f"{count} of {seeds}" if count else "0: exactly zero" for count in counts]
    ax.bar_label(drawn, labels, padding=4, fontsize=9, color=_INK)
    ax.set_yticks(range(len(names)), names)
    ax.invert_yaxis()
    ax.margins(x=0.12, y=0.01)
    ax.set_title(
        "norm of an input's weights, mean of the seeds; in how many seeds it survives",
        fontsize=12, loc="left", color=_INK,
    )  # fmt: skip
    ax.tick_params(labelsize=9, colors=_INK, length=0)
    ax.grid(axis="x", alpha=0.25)
    ax.set_axisbelow(True)
    ax.spines[:].set_visible(False)
    figure.savefig(path)
