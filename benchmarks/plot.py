"""Results as pictures: bars of each contender's figure, grouped by row, bounds marked.

Rows with several subjects, the dtypes, are a line with a dot for each.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.harness import SUBJECT, Row
from benchmarks.report import Results

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLORS = {
    "eager": "#b8bcc4",
    "torch.compile": "#7d9cc9",
    "torchcalc, no penalty": "#f3bd96",
    "F.linear": "#e2e8f0",
    "two linear_act": "#f3bd96",
    SUBJECT: "#dd6b20",
    "float64": "#b8bcc4",
    "bfloat16": "#7d9cc9",
    "float16": "#38a169",
}
INK = "#2d3748"
TITLES = {
    "dropout": "Dropout",
    "linear_act": "Linear + gelu + dropout",
    "activations": "Activations with dropout",
    "shapes": "Linear + activation, shapes",
    "gated": "Gated linear units with dropout",
    "mlp": "MLP block",
    "vmap": "torch.func",
    "epilogue": "Epilogue and its derivative",
    "optim": "Optimizer step with L1",
    "prox": "Prox",
    "memory": "Saved for backward",
    "models": "Whole models",
    "import": "Import",
    "calls": "One thread",
    "dtypes": "Time in a dtype / in float32, one thread",
    "penalty": "Step with L1 / without, one thread",
    "penalties": "AdamW + penalty / without; projections / sorted",
}
# What a picture's file name ends in, its title and the families that it shows.
PICTURES = {
    "": (
        "torchcalc beside eager PyTorch and torch.compile",
        ("dropout", "linear_act", "epilogue", "optim", "prox", "import"),
    ),
    "-activations": ("Every activation, beside eager PyTorch", ("activations", "memory")),
    "-layers": ("Layers in training", ("shapes", "gated", "mlp", "vmap")),
    "-models": ("Training steps of models, fused", ("models",)),
    "-calls": ("What a call costs beside PyTorch's", ("calls",)),
    "-dtypes": ("torchcalc in each dtype, and with a penalty", ("dtypes", "penalty", "penalties")),
}


TALL = 100  # bars


def plot(path: Path, machine: dict[str, Any], results: Results) -> list[Path]:
    """Writes the pictures of those families that have rows; returns their paths."""
    import matplotlib as mpl

    mpl.use("Agg")
    written = []
    for suffix, (title, families) in PICTURES.items():
        panels = {name: results[name] for name in families if results.get(name)}
        if panels:
            written.append(path.with_stem(path.stem + suffix))
            _picture(written[-1], title, machine, panels)
    return written


def _picture(path: Path, title: str, machine: dict[str, Any], panels: Results) -> None:
    from matplotlib import pyplot as plt
    from PIL import Image  # which matplotlib depends on

    columns = _columns(panels)
    height = max(sum(_height(panels[family]) for family in column) for column in columns)
    fig = plt.figure(
        figsize=(max(11, 7.2 * len(columns)), 0.24 * height + 1.5), layout="constrained"
    )
    halves: Any = fig.subfigures(2, 1, height_ratios=[1.1, 0.24 * height])
    head, body = halves
    parts: Any = body.subfigures(1, len(columns), squeeze=False)
    for part, column in zip(parts[0], columns, strict=True):
        heights = [_height(panels[family]) for family in column]
        axes = part.subplots(len(column), 1, squeeze=False, height_ratios=heights)[:, 0]
        for ax, family in zip(axes, column, strict=True):
            _panel(ax, TITLES[family], panels[family])
    names = {name for rows in panels.values() for row in rows for name in row.compared}
    _head(head, title, machine, names)
    fig.savefig(path, dpi=130, facecolor="white")
    plt.close(fig)
    with Image.open(path) as picture:  # has few colours: as a palette, a third of the size
        few = picture.convert("RGB").quantize(256)
    few.save(path, optimize=True)


def _height(rows: list[Row]) -> float:
    """In bars: those of the rows, a gap for each row, and the panel's title and axis."""
    return sum(_lines(row) + _gap(row) for row in rows) + 3.5


def _lines(row: Row) -> int:
    return 1 if len(row.subjects) > 1 else len(row.compared)


def _gap(row: Row) -> float:
    """Below a row: next to bars its label has three lines, next to dots one."""
    return 0.0 if len(row.subjects) > 1 else max(1.0, 2.4 - len(row.compared))


def _columns(panels: Results) -> list[list[str]]:
    """The families in order: many or tall ones in two columns of about the same height."""
    families = list(panels)
    heights = [_height(panels[family]) for family in families]
    if len(families) == 1 or (len(families) == 2 and max(heights) < TALL):
        return [families]
    split = min(range(1, len(families)), key=lambda k: max(sum(heights[:k]), sum(heights[k:])))
    return [families[:split], families[split:]]


def _panel(ax: Axes, title: str, rows: list[Row]) -> None:
    ticks, labels, top, largest = [], [], 0.0, 0.0
    for row in rows:
        bottom = top + _lines(row) - 1
        span = (top - 0.6, bottom + 0.6)
        if row.not_measured:
            ax.annotate("not measured", (0, (top + bottom) / 2), **_TEXT, color=INK, alpha=0.6)
        elif len(row.subjects) > 1:
            _dots(ax, row, top)
        else:
            _bars(ax, row, top)
        if row.bound:
            ax.plot([row.bound.must] * 2, span, color=INK, lw=2, solid_capstyle="butt", zorder=3)
            largest = max(largest, row.bound.must)
        if row.bound and row.bound.aim:
            ax.plot([row.bound.aim] * 2, span, color=INK, lw=1, ls=(0, (2, 1.5)), zorder=3)
        if not row.not_measured:
            largest = max(largest, *map(row.figure, row.compared))
        ticks.append((top + bottom) / 2)
        labels.append(_label(row))
        top = bottom + 1 + _gap(row)
    if rows[0].baseline:
        ax.axvline(1, color=INK, lw=0.8, alpha=0.45, zorder=0)
    ax.set_yticks(ticks, labels, fontsize=8.5, color=INK)
    ax.set_ylim(bottom + 1.1, -1.1)
    ax.set_xlim(0, (largest or 1.0) * 1.13)
    ax.set_title(title, loc="left", fontsize=11, fontweight="bold", color=INK)
    ax.set_xlabel("time / baseline" if rows[0].baseline else rows[0].unit, fontsize=8, color=INK)
    ax.tick_params(axis="x", labelsize=8, colors=INK, length=3)
    ax.tick_params(axis="y", length=0)
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.spines["bottom"].set_color("#a0aec0")


_TEXT: dict[str, Any] = {
    "xytext": (4, 0), "textcoords": "offset points", "va": "center", "fontsize": 8, "zorder": 4,
    "bbox": {"facecolor": "white", "alpha": 0.85, "linewidth": 0, "pad": 0.6},
}  # fmt: skip


def _bars(ax: Axes, row: Row, top: float) -> None:
    for k, name in enumerate(row.compared):
        figure = row.figure(name)
        ax.barh(top + k, figure, height=0.86, color=COLORS[name])
        ax.annotate(
            f"{figure:.3g}",
            (figure, top + k),
            **_TEXT,
            color=INK,
            fontweight="bold" if name == SUBJECT else "normal",
        )


def _dots(ax: Axes, row: Row, y: float) -> None:
    figures = {name: row.figure(name) for name in row.compared}
    ax.plot([0, max(figures.values())], [y, y], color="#e2e8f0", lw=1, zorder=1)
    for name, figure in figures.items():
        ax.scatter(figure, y, s=26, color=COLORS[name], zorder=4)
    ax.annotate(f"{max(figures.values()):.3g}", (max(figures.values()), y), **_TEXT, color=INK)


def _label(row: Row) -> str:
    if len(row.subjects) > 1:
        return row.name
    lines = [row.name, " ".join(filter(None, (row.sizes, row.dtype)))]
    if row.baseline:
        value = "" if row.not_measured else f": {row.value_name(row.baseline)}"
        lines.append(f"baseline {row.baseline}{value}")
    return "\n".join(filter(None, lines))


def _head(head: Any, title: str, machine: dict[str, Any], names: set[str]) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    where = machine["gpu"] or f"{machine['cpu']}, {machine['threads']} threads"
    head.text(
        0.012, 0.86, f"{title}: shorter is better",
        fontsize=14, fontweight="bold", color=INK, va="top",
    )  # fmt: skip
    head.text(
        0.012, 0.5, f"{where}; torch {machine['torch']}; {machine['date'][:10]}",
        fontsize=9, color=INK, va="top",
    )  # fmt: skip
    keys: list[Any] = [Patch(color=c, label=name) for name, c in COLORS.items() if name in names]
    keys += [
        Line2D([], [], color=INK, lw=2, label="must stay within"),
        Line2D([], [], color=INK, lw=1, ls=(0, (2, 1.5)), label="aim"),
        Line2D([], [], color=INK, lw=0.8, alpha=0.45, label="baseline"),
    ]
    head.legend(
        handles=keys, loc="lower left", bbox_to_anchor=(0.004, -0.1), ncols=len(keys),
        frameon=False, fontsize=8.5, labelcolor=INK, handlelength=1.4, columnspacing=1.4,
    )  # fmt: skip
