"""The pictures that the demo leaves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from numpy.typing import NDArray
from torch import nn

from torchcalc.cli.demo.costs import BATCH
from torchcalc.cli.demo.digits import SIDE
from torchcalc.cli.demo.training import Figures, Run

NAMES = {
    "dense": "dense",
    "sparse": "L1",
    "group_sparse": "group-sparse",
    "compacted": "compacted",
}
_COLORS = {
    "dense": "#4477aa",
    "sparse": "#cc4433",
    "group_sparse": "#ddaa33",
    "compacted": "#228833",
}
_LABELS = {
    "dense": "dense (torch.nn, torch.optim)",
    "sparse": "L1 (torchcalc)",
    "group_sparse": "group-sparse (torchcalc, GroupL2)",
}
_ROWS, _COLUMNS = 6, 8  # of units in weights.png, for each model
_COLORMAP = colormaps["coolwarm"].with_extremes(bad="white")  # grey at 0: white is for exact zeros
_INK = "#333333"
_FRAME = "#bbbbbb"

Array = NDArray[np.floating[Any]]


def training(runs: Mapping[str, Sequence[Run]], path: Path) -> None:
    """Test accuracy and share of exact zeros over the steps: mean and range over the seeds."""
    figure = Figure(figsize=(12, 4.8), dpi=150, layout="constrained")
    left, right = figure.subplots(1, 2)
    accuracy = {name: np.array([run.accuracy for run in runs[name]]) for name in runs}
    zeros = {name: np.array([run.zero_fraction for run in runs[name]]) for name in runs}
    steps = runs["dense"][0].steps
    # The first steps' accuracies would press all the others into a line at the top.
    settled = min(curves[:, len(steps) // 2 :].min() for curves in accuracy.values())
    low = min(0.9, np.floor(10 * settled) / 10)
    _curves(left, "test accuracy", low, steps, accuracy)
    _curves(right, "weights that are exactly zero", 0.0, steps, zeros)
    seeds = len(runs["dense"])
    caption = f"line: mean of {seeds} seeds, band: their range" if seeds > 1 else None
    left.legend(loc="lower right", fontsize=12, frameon=False, title=caption, alignment="left")
    figure.savefig(path)


def _curves(
    ax: Axes, title: str, low: float, steps: Sequence[int], models: Mapping[str, Array]
) -> None:
    """``models``: [seeds, steps] for each model; the axis goes from ``low`` to 1."""
    ends = {name: float(curves[:, -1].mean()) for name, curves in models.items()}
    heights: dict[str, float] = {}
    for name in sorted(ends, key=lambda name: ends[name]):  # no number on another
        lowest = max(heights.values(), default=-1.0) + 0.06 * (1 - low)
        heights[name] = max(ends[name], lowest)
    for name, curves in models.items():
        mean, color = curves.mean(axis=0), _COLORS[name]
        ax.plot(steps, mean, color=color, linewidth=2, label=_LABELS[name])
        ax.fill_between(steps, curves.min(axis=0), curves.max(axis=0), color=color, alpha=0.2, lw=0)
        ax.annotate(
            f"{ends[name]:.1%}",
            (steps[-1], heights[name]),
            xytext=(8, 0),
            textcoords="offset points",
            color=color,
            fontsize=13,
            fontweight="bold",
            va="center",
            annotation_clip=False,
        )
    ax.set_title(title, fontsize=15, loc="left", color=_INK, pad=12)
    ax.set_xlabel("training step", fontsize=12, color=_INK)
    ax.set_xlim(0, steps[-1])
    ax.set_ylim(low - 0.01 * (1 - low), 1)
    ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    ax.tick_params(labelsize=11, colors=_INK, length=0)
    ax.grid(alpha=0.25)
    ax.spines[["top", "right", "left"]].set_visible(False)


def compacted(means: Mapping[str, Figures], path: Path) -> None:
    """Accuracy, size and inference time of each model, as bars."""
    figure = Figure(figsize=(12, 3.6), dpi=150, layout="constrained")
    names = list(means)
    for ax, (title, key, text) in zip(
        figure.subplots(1, 3, sharey=True),
        (
            ("test accuracy", "accuracy", "{:.1%}"),
            ("parameters", "parameters", "{:,.0f}"),
            (f"inference (ms per {BATCH} digits)", "ms_per_batch", "{:.2f}"),
        ),
        strict=True,
    ):
        values = [means[name][key] for name in names]
        bars = ax.barh(
            [NAMES[name] for name in names], values, color=[_COLORS[name] for name in names]
        )
        ax.bar_label(bars, [text.format(v) for v in values], padding=4, fontsize=12, color=_INK)
        ax.set_title(title, fontsize=14, loc="left", color=_INK, pad=10)
        ax.set_xlim(0, 1.25 * max(values))
        ax.set_xticks([])
        ax.tick_params(labelsize=13, colors=_INK, length=0)
        ax.spines[:].set_visible(False)
    figure.axes[0].invert_yaxis()
    figure.savefig(path)


def weights(dense: nn.Module, sparse: nn.Module, path: Path) -> None:
    """The first layer's rows as pictures: those of largest norm in the L1 model, in both."""
    first = {"dense": _first_weight(dense), "sparse": _first_weight(sparse)}
    norms = np.linalg.norm(first["sparse"], axis=1)
    chosen = np.argsort(-norms, kind="stable")[: _ROWS * _COLUMNS]
    figure = Figure(figsize=(13, 5.3), dpi=150)
    for name, left in (("dense", 0.02), ("sparse", 0.52)):
        weight = first[name]
        grid = figure.add_gridspec(
            _ROWS, _COLUMNS, left=left, right=left + 0.405, bottom=0.13, top=0.865,
            wspace=0.08, hspace=0.08,
        )  # fmt: skip
        dead = int((weight == 0).all(axis=1).sum())
        title = (
            f"first layer: {(weight == 0).mean():.0%} exact zeros, "
            f"{dead} of {len(weight)} units dead"
        )
        figure.text(left, 0.935, NAMES[name], fontsize=17, fontweight="bold", color=_COLORS[name])
        figure.text(left, 0.885, title, fontsize=13, color=_INK)
        # The strongest hundredth would leave all others pale. (What diverged has no size.)
        sizes = np.nan_to_num(np.abs(weight[chosen]), posinf=0.0)
        limit = float(np.percentile(sizes, 99)) or 1.0
        scale = Normalize(-limit, limit)
        for k, unit in enumerate(chosen):
            ax = figure.add_subplot(grid[divmod(k, _COLUMNS)])
            picture = np.ma.masked_equal(weight[unit].reshape(SIDE, SIDE), 0)
            ax.imshow(picture, cmap=_COLORMAP, norm=scale)
            ax.set(xticks=[], yticks=[])
            ax.spines[:].set_color(_FRAME)
        bar = figure.colorbar(
            ScalarMappable(scale, _COLORMAP),
            cax=figure.add_axes((left + 0.415, 0.13, 0.01, 0.735)),
            extend="both",
        )
        bar.outline.set_visible(False)
        bar.ax.tick_params(labelsize=10, colors=_INK, length=0)
    caption = (
        f"What hidden units multiply the {SIDE} x {SIDE} pixels by: the {len(chosen)} units of "
        "largest norm in the L1 model, the same ones in both.\n"
        "White: exactly zero (close to zero is grey). Dead: a unit with nothing but exact zeros."
    )
    figure.text(0.02, 0.03, caption, fontsize=11, color=_INK, linespacing=1.5)
    figure.savefig(path)


def _first_weight(model: nn.Module) -> Array:
    weight: Array = next(model.parameters()).detach().double().numpy()
    return weight
