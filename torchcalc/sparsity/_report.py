"""Where a model's exact zeros are."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils.parametrize import ParametrizationList, is_parametrized


@dataclass(frozen=True)
class LayerReport:
    """The zeros of one weight: rows make features, columns read them.

    It is [rows, columns, ...]; of a transposed convolution [columns, rows, ...]. With groups, each
    has columns of its own. ``heat`` is the share of zeros by blocks of the matrix, at most 32 x 32
    of them.
    """

    name: str
    shape: tuple[int, ...]
    rows: int
    columns: int
    zeros: int
    dead_rows: int
    dead_columns: int
    heat: Tensor

    @property
    def size(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class Report:
    """The zeros of a model; ``print`` shows a table, :meth:`plot` a heat map."""

    layers: tuple[LayerReport, ...]

    @property
    def zeros(self) -> int:
        return sum(layer.zeros for layer in self.layers)

    @property
    def size(self) -> int:
        return sum(layer.size for layer in self.layers)

    def __str__(self) -> str:
        head = ("weight", "shape", "zeros", "dead rows", "dead columns")
        rows = [head]
        for layer in self.layers:
            rows.append(
                (
                    layer.name,
                    " x ".join(map(str, layer.shape)),
                    _share(layer.zeros, layer.size),
                    f"{layer.dead_rows} of {layer.rows}",
                    f"{layer.dead_columns} of {layer.columns}",
                )
            )
        rows.append(("all", f"{self.size}", _share(self.zeros, self.size), "", ""))
        widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
        lines = []
        for row in rows:
            name, *cells = row
            padded = [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)]
            lines.append("  ".join([name.ljust(widths[0]), *padded]).rstrip())
        return "\n".join(lines)

    def plot(self, path: str | Path | None = None) -> Any:
        """A heat map for each weight: dark where it is zero.

        Args:
            path: of a picture to write, or None.

        Returns:
            The matplotlib figure.

        Raises:
            ImportError: matplotlib is not installed (``pip install torchcalc[demo]``).
        """
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise ImportError(
                "Report.plot needs matplotlib: pip install 'torchcalc[demo]'"
            ) from error
        columns = min(4, max(1, len(self.layers)))
        rows = -(-max(1, len(self.layers)) // columns)
        figure = Figure(figsize=(3.2 * columns, 3.0 * rows), layout="constrained")
        for i, layer in enumerate(self.layers):
            axes = figure.add_subplot(rows, columns, i + 1)
            height, width = layer.rows, layer.size // layer.rows
            image = axes.imshow(
                layer.heat.numpy(), vmin=0, vmax=1, cmap="Greys", extent=(0, width, height, 0)
            )
            axes.set_aspect("auto")
            axes.set_title(f"{layer.name}\n{_share(layer.zeros, layer.size)} zeros", fontsize=9)
            axes.set_xlabel("columns", fontsize=8)
            axes.set_ylabel("rows", fontsize=8)
            axes.tick_params(labelsize=7)
        if self.layers:
            figure.colorbar(image, ax=figure.axes, label="share of zeros", shrink=0.8)
        if path is not None:
            figure.savefig(path, dpi=150)
        return figure


def report(model: nn.Module) -> Report:
    """Counts the exact zeros of each weight with two or more dimensions, pruned ones as they act.

    A dead row is one of zeros only, so that its feature is its bias; a dead column is a feature
    that is not read. :func:`compact` removes what can be removed.

    Raises:
        TypeError: model is no module.

    Example:
        >>> print(torchcalc.sparsity.report(model))  # doctest: +SKIP
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"report: model must be a torch.nn.Module, got {type(model).__name__}")
    layers = []
    for name, module, weight in _weights(model):
        if weight.dim() < 2 or not weight.numel():
            continue
        zero, groups = weight == 0, 1
        if isinstance(module, _ConvNd):
            groups = module.groups
            if module.transposed:  # [columns, rows in a group, ...]
                zero = zero.reshape(groups, -1, *zero.shape[1:]).transpose(1, 2).flatten(0, 1)
        matrix = zero.flatten(2).all(2) if zero.dim() > 2 else zero
        read_by = matrix.reshape(groups, -1, matrix.shape[1]).all(1)
        layers.append(
            LayerReport(
                name,
                tuple(weight.shape),
                len(matrix),
                read_by.numel(),
                int(zero.sum()),
                int(matrix.all(1).sum()),
                int(read_by.sum()),
                _heat(zero.flatten(1)),
            )
        )
    return Report(tuple(layers))


def _weights(model: nn.Module) -> Iterator[tuple[str, nn.Module, Tensor]]:
    """What layers compute with: also what pruning and parametrizations make of parameters."""
    seen = set()
    for prefix, module in model.named_modules():
        if isinstance(module, ParametrizationList):
            continue
        own = dict(module.named_parameters(recurse=False))
        found = {}
        for name, parameter in own.items():
            mask = getattr(module, f"{name.removesuffix('_orig')}_mask", None)
            if name.endswith("_orig") and isinstance(mask, Tensor):
                found[name.removesuffix("_orig")] = parameter.detach() * mask
            elif parameter not in seen:
                seen.add(parameter)
                found[name] = parameter.detach()
        if is_parametrized(module):
            with torch.no_grad():
                found.update({name: getattr(module, name) for name in module.parametrizations})
        for name, weight in found.items():
            yield (f"{prefix}.{name}" if prefix else name), module, weight


def _heat(zero: Tensor) -> Tensor:
    share = zero.float().cpu()[None, None]
    rows, columns = (min(32, s) for s in share.shape[2:])
    return nn.functional.adaptive_avg_pool2d(share, (rows, columns))[0, 0]


def _share(zeros: int, size: int) -> str:
    return f"{100 * zeros / max(size, 1):.1f} %"
