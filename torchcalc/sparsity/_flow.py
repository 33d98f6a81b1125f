"""Which tensors of a traced model share their channels, and what is known of each channel.

A space is a set of tensors whose channels go together: what an elementwise function, a
normalisation in eval or a sum makes of tensors of a space is in that space. Layers end one and
begin another. What is not understood freezes the spaces that it touches: nothing is removed there.
"""

from __future__ import annotations

import inspect
import math
import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

import torchcalc.nn
from torchcalc.ops import activations
from torchcalc.sparsity._layers import BATCH_NORMS, CONVOLUTIONS, BatchNorm, Layer, layer_of

_ELEMENTWISE = tuple(activations._MODULES)
_EVAL_IDENTITY = (
    *(nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.Identity),
    *(torchcalc.nn.Dropout, torchcalc.nn.AlphaDropout),
)
_MAX_POOLS = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)
_MEAN_POOLS = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)
_AVERAGE_POOLS = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
_FUNCTIONS: dict[Any, Callable[..., Tensor]] = {
    f: f
    for f in (
        *(F.relu, F.relu6, F.gelu, F.silu, F.mish, F.softplus, F.elu, F.selu, F.celu, F.leaky_relu),
        *(F.hardswish, F.hardsigmoid, F.hardtanh, F.softsign, torch.relu, torch.sigmoid),
        *(torch.tanh, F.sigmoid, F.tanh),
    )
}
_METHODS = {"relu": torch.relu, "sigmoid": torch.sigmoid, "tanh": torch.tanh}
_DROPOUTS = (F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout)
_SUMS = (operator.add, operator.iadd, torch.add)
_PRODUCTS = (operator.mul, operator.imul, torch.mul)


@dataclass
class Facts:
    """What is known of modules beside what a graph shows."""

    opaque: set[nn.Module]  # must stay as they are
    sequences: set[nn.Module]  # BatchNorm1d's that see [batch, channels, length]


@dataclass(eq=False)
class Space:
    """Channels that stay or go together."""

    size: int
    frozen: bool = False
    makers: list[Layer] = field(default_factory=list)
    norms: list[BatchNorm] = field(default_factory=list)
    # Layers that read it, the constants that they see, and how many columns a channel has there.
    readers: list[tuple[Layer, Tensor, int]] = field(default_factory=list)

    def join(self, other: Space) -> None:
        self.frozen |= other.frozen or self.size != other.size
        self.makers += other.makers
        self.norms += other.norms
        self.readers += other.readers

    def needed(self) -> Tensor:
        """Which channels some reader depends on, and cannot have in its bias."""
        device = self.readers[0][1].device
        needed = torch.zeros(self.size, dtype=torch.bool, device=device)
        for layer, constants, times in self.readers:
            spread = constants.repeat_interleave(times)
            columns = layer.reads() & ~layer.folds(spread)
            needed |= columns.view(self.size, times).any(1)
        return needed


@dataclass(eq=False)
class Channels:
    """Of a tensor: its space, the constants, whether the channels are the last dimension."""

    space: list[Space]  # a cell: spaces are joined
    constants: Tensor
    last: bool
    flat: bool = False  # [N, channels times places]
    memory: list[Channels] = field(default_factory=list)  # what may share it, itself included

    def __post_init__(self) -> None:
        self.memory.append(self)

    def overwrite(self, constants: Tensor | None) -> None:
        """What is done in place; of that which may be a view or a copy only what both say is known.

        None where it is not known what is done.
        """
        for other in self.memory:
            if other is self and constants is not None:
                self.constants = constants
            elif constants is None:
                other.constants = torch.full_like(other.constants, math.nan)
            else:
                same = other.constants == constants
                other.constants = torch.where(same, constants, math.nan)


class Flow:
    """Goes through a graph once, node by node.

    Args:
        root: the module that was traced.
        graph: its graph.
        facts: gets what the graph reads of modules.
    """

    def __init__(self, root: nn.Module, graph: fx.Graph, facts: Facts) -> None:
        self.modules = dict(root.named_modules())
        # Those whose parameters a forward reads itself are, too.
        read = (str(n.target).rpartition(".")[0] for n in graph.nodes if n.op == "get_attr")
        facts.opaque.update(self.modules[name] for name in read)
        self.facts = facts
        self.known: dict[fx.Node, Channels | None] = {}
        self.cells: list[list[Space]] = []
        self.inner: list[tuple[Any, Tensor]] = []  # layers with features of their own
        calls: dict[Any, int] = {}
        for node in graph.nodes:
            if node.op == "call_module":
                calls[node.target] = calls.get(node.target, 0) + 1
        again = (self.modules[name] for name, count in calls.items() if count > 1)
        self.repeated = {m for m in again if list(m.parameters()) + list(m.buffers())}
        for node in graph.nodes:
            self.known[node] = self._visit(node)

    def spaces(self) -> list[Space]:
        found: dict[int, Space] = {id(cell[0]): cell[0] for cell in self.cells}
        return list(found.values())

    def _freeze(self, node: fx.Node) -> None:
        """What reads a tensor in an unknown way needs all of its channels."""
        for argument in node.all_input_nodes:
            channels = self.known.get(argument)
            if channels is not None:
                channels.space[0].frozen = True
                channels.overwrite(None)  # perhaps in place

    def _visit(self, node: fx.Node) -> Channels | None:
        made = None
        if node.op == "call_module":
            made = self._module(node, self.modules[str(node.target)])
        elif node.op == "call_function":
            made = self._function(node)
        elif node.op == "call_method":
            made = self._method(node)
        elif node.op in ("placeholder", "get_attr"):
            return None
        if made is None:
            self._freeze(node)
        return made

    def _input(self, node: fx.Node) -> Channels | None:
        """The channels of a node that has one tensor to look at."""
        first = node.args[0] if node.args else None
        return self.known.get(first) if isinstance(first, fx.Node) else None

    def _same(self, x: Channels, constants: Tensor) -> Channels:
        return Channels(x.space, constants, x.last, x.flat)

    def _apply(self, x: Channels, f: Callable[[Tensor], Tensor], inplace: bool = False) -> Channels:
        """An elementwise function."""
        constants = f(x.constants.clone())
        if not inplace:
            return self._same(x, constants)
        x.overwrite(constants)
        return x

    def _module(self, node: fx.Node, module: nn.Module) -> Channels | None:
        x = self._input(node)
        if module in self.facts.opaque or module in self.repeated:
            return None
        layer = layer_of(module)
        if layer is not None:
            return self._layer(node, layer, module, x) if node.args else None
        if x is None:
            return None
        if len(node.all_input_nodes) != 1:
            return None
        if type(module) in _EVAL_IDENTITY:
            return x
        if type(module) in _ELEMENTWISE:
            return self._apply(x, module, getattr(module, "inplace", False))
        if type(module) in BATCH_NORMS:
            return self._batch_norm(x, module)
        if isinstance(module, nn.Flatten) and module.start_dim == 1 and module.end_dim == -1:
            return self._flatten(x)
        return self._pool(x, module)

    def _pool(self, x: Channels, module: Any) -> Channels | None:
        if x.last or x.flat:
            return None
        if isinstance(module, _MAX_POOLS) and not module.return_indices:
            return self._same(x, x.constants)  # beyond the border it sees nothing
        if isinstance(module, _MEAN_POOLS):
            return self._same(x, x.constants)
        if isinstance(module, _AVERAGE_POOLS):
            padded = module.padding not in (0, (0,), (0, 0), (0, 0, 0))
            is_mean = getattr(module, "divisor_override", None) is None
            if is_mean and not (padded and module.count_include_pad):
                return self._same(x, x.constants)
            zero = x.constants == 0
            return self._same(x, torch.where(zero, 0.0, math.nan))
        return None

    def _layer(
        self, node: fx.Node, layer: Layer, module: nn.Module, x: Channels | None
    ) -> Channels | None:
        _, *others = (a for a in (*node.args, *node.kwargs.values()) if a is not None)
        if not all(isinstance(a, fx.Node) for a in others):
            return None
        device = next(module.parameters()).device
        unknown = torch.full((layer.columns,), math.nan, dtype=torch.float64, device=device)
        inputs = unknown
        last = type(module) not in CONVOLUTIONS
        if x is not None:
            size = x.space[0].size
            fits = x.last == last if not x.flat else last
            if not fits or layer.columns % size or (layer.columns != size and not x.flat):
                x.space[0].frozen = True
            else:
                times = layer.columns // size
                x.space[0].readers.append((layer, x.constants, times))
                inputs = x.constants.repeat_interleave(times)
        space = [Space(layer.rows, makers=[layer])]
        self.cells.append(space)
        if hasattr(layer, "compact"):
            self.inner.append((layer, inputs))
        made = Channels(space, layer.constants(inputs), last)
        for other in others:  # a residual, added to what the layer makes
            joined = self._join(made, self.known.get(cast(fx.Node, other)), operator.add)
            if joined is None:
                return None
            made = joined
        return made

    def _batch_norm(self, x: Channels, module: Any) -> Channels | None:
        if module.running_mean is None or x.flat or module.num_features != x.space[0].size:
            return None
        if x.last and (type(module) is not nn.BatchNorm1d or module in self.facts.sequences):
            return None
        norm = BatchNorm(module)
        x.space[0].norms.append(norm)
        return self._same(x, norm.constants(x.constants))

    def _flatten(self, x: Channels) -> Channels | None:
        return None if x.last else Channels(x.space, x.constants, False, True, x.memory)

    def _function(self, node: fx.Node) -> Channels | None:
        f = node.target
        if f in _SUMS or f in _PRODUCTS:
            if len(node.args) != 2 or node.kwargs:
                return None
            made = self._combine(operator.add if f in _SUMS else operator.mul, *node.args)
            if made is None or f not in (operator.iadd, operator.imul):
                return made
            changed = self._input(node)
            if changed is None:  # a number times a tensor is no change of the tensor
                return None
            changed.overwrite(made.constants)
            return changed
        x = self._input(node)
        if x is None or len(node.all_input_nodes) != 1:
            return None
        if f in _DROPOUTS:
            # One that is on in eval makes noise of what is constant.
            given = inspect.signature(f).bind(*node.args, **node.kwargs).arguments
            return None if given.get("training", f is not F.alpha_dropout) else x
        if f in _FUNCTIONS:
            function, rest, named = _FUNCTIONS[f], node.args[1:], node.kwargs
            inplace = bool(named.get("inplace", any(a is True for a in rest)))
            return self._apply(x, lambda c: function(c, *rest, **named), inplace)
        if f is torch.flatten and (*node.args[1:], *node.kwargs.values()) == (1,):
            return self._flatten(x)
        return None

    def _method(self, node: fx.Node) -> Channels | None:
        x = self._input(node)
        if x is None or len(node.all_input_nodes) != 1:
            return None
        if node.target in _METHODS and len(node.args) == 1:
            return self._apply(x, _METHODS[str(node.target)])
        if node.target == "flatten" and (*node.args[1:], *node.kwargs.values()) == (1,):
            return self._flatten(x)
        if node.target == "contiguous":
            return Channels(x.space, x.constants, x.last, x.flat, x.memory)
        return None

    def _combine(self, f: Callable[[Any, Any], Any], a: Any, b: Any) -> Channels | None:
        """A sum or product of tensors, or of a tensor and a number."""
        if isinstance(a, fx.Node) and isinstance(b, fx.Node):
            return self._join(self.known.get(a), self.known.get(b), f)
        node, number = (a, b) if isinstance(a, fx.Node) else (b, a)
        x = self.known.get(node)
        if x is None or not isinstance(number, int | float):
            return None
        return self._apply(x, lambda c: f(c, number))

    def _join(
        self, x: Channels | None, y: Channels | None, f: Callable[[Any, Any], Any]
    ) -> Channels | None:
        """A sum or product of two tensors: their channels go together."""
        if x is None or y is None or (x.last, x.flat) != (y.last, y.flat):
            return None
        kept, gone = x.space[0], y.space[0]
        if kept.size != gone.size:
            return None
        if kept is not gone:
            kept.join(gone)
            for cell in self.cells:
                if cell[0] is gone:
                    cell[0] = kept
        constants = f(x.constants, y.constants)
        if f is operator.mul:
            constants = torch.where((x.constants == 0) | (y.constants == 0), 0.0, constants)
        return self._same(x, constants)
