"""Layers as matrices: which outputs are constant, which inputs are read, and how to remove both.

A constant is a value for each channel, NaN where the channel is none.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from torchcalc.nn import MLP, GatedLinear, LinearAct
from torchcalc.ops.activations import resolve
from torchcalc.reference import activations

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class Matrix:
    """``weight`` [rows, columns, ...] and ``bias`` [rows] or None, parameters of a module."""

    def __init__(self, module: nn.Module, weight: str, bias: str) -> None:
        self.module, self.names = module, (weight, bias)

    @property
    def weight(self) -> Tensor:
        return getattr(self.module, self.names[0]).detach()  # type: ignore[no-any-return]

    @property
    def bias(self) -> Tensor | None:
        bias = getattr(self.module, self.names[1])
        return None if bias is None else bias.detach()

    def reads(self) -> Tensor:
        """Which columns have a weight that is not 0; NaN is none."""
        weight = self.weight.transpose(0, 1).flatten(1)
        return (weight != 0).any(1)

    def constants(self, inputs: Tensor) -> Tensor:
        """Of the rows, given those of the columns."""
        weight = self.weight.flatten(2).double().sum(2) if self.weight.dim() > 2 else self.weight
        known = ~inputs.isnan()
        varies = (self.weight.flatten(2) != 0).any(2) if self.weight.dim() > 2 else weight != 0
        fixed = ~(varies & ~known).any(1)
        value = weight.double() @ torch.where(known, inputs, 0.0).double()
        if self.bias is not None:
            value = value + self.bias.double()
        return torch.where(fixed, value, math.nan)

    def keep_rows(self, kept: Tensor) -> None:
        self._set(0, self.weight[kept])
        if self.bias is not None:
            self._set(1, self.bias[kept])

    def keep_columns(self, kept: Tensor, constants: Tensor) -> None:
        """Columns that go add what they are to the bias: their constant times their weights."""
        gone = torch.ones(self.weight.shape[1], dtype=torch.bool, device=kept.device)
        gone[kept] = False
        weight = self.weight.flatten(2).double().sum(2) if self.weight.dim() > 2 else self.weight
        # Of a column that is never read nothing is known, and nothing is added.
        values = torch.where(constants.isnan(), 0.0, constants)[gone].double()
        added = weight.double()[:, gone] @ values
        if (added != 0).any():
            bias = torch.zeros_like(added) if self.bias is None else self.bias.double()
            self._set(1, (bias + added).to(self.weight.dtype))
        self._set(0, self.weight[:, kept])

    def _set(self, which: int, value: Tensor) -> None:
        name = self.names[which]
        old = getattr(self.module, name)
        needs_grad = old.requires_grad if old is not None else self.weight.requires_grad
        if old is None:
            needs_grad = getattr(self.module, self.names[0]).requires_grad
        setattr(self.module, name, nn.Parameter(value.clone().contiguous(), needs_grad))


class Layer(abc.ABC):
    """A module that reads channels and makes others."""

    rows: int
    columns: int

    @abc.abstractmethod
    def constants(self, inputs: Tensor) -> Tensor:
        """Of the outputs, given those of the inputs."""

    @abc.abstractmethod
    def reads(self) -> Tensor:
        """Which inputs have an influence."""

    def folds(self, constants: Tensor) -> Tensor:
        """Which of these constants can go into the bias."""
        return ~constants.isnan()

    @abc.abstractmethod
    def keep_rows(self, kept: Tensor) -> None: ...

    @abc.abstractmethod
    def keep_columns(self, kept: Tensor, constants: Tensor) -> None: ...


class _Linear(Layer):
    """nn.Linear and LinearAct: y = f(W x + b)."""

    def __init__(self, module: Any, f: Callable[[Tensor], Tensor] = lambda z: z) -> None:
        self.module, self.f = module, f
        self.matrix = Matrix(module, "weight", "bias")
        self.rows, self.columns = module.weight.shape[:2]

    def constants(self, inputs: Tensor) -> Tensor:
        return self.f(self.matrix.constants(inputs))

    def reads(self) -> Tensor:
        return self.matrix.reads()

    def keep_rows(self, kept: Tensor) -> None:
        self.matrix.keep_rows(kept)
        self.module.out_features = len(kept)

    def keep_columns(self, kept: Tensor, constants: Tensor) -> None:
        self.matrix.keep_columns(kept, constants)
        self.module.in_features = len(kept)


class _Convolution(_Linear):
    """Zeros beyond the border are no constant, unless that is 0: there nothing can be folded."""

    def folds(self, constants: Tensor) -> Tensor:
        padded = self.module.padding_mode == "zeros" and not _is_unpadded(self.module)
        return (constants == 0) if padded else ~constants.isnan()

    def constants(self, inputs: Tensor) -> Tensor:
        return super().constants(torch.where(self.folds(inputs), inputs, math.nan))

    def keep_rows(self, kept: Tensor) -> None:
        self.matrix.keep_rows(kept)
        self.module.out_channels = len(kept)

    def keep_columns(self, kept: Tensor, constants: Tensor) -> None:
        self.matrix.keep_columns(kept, constants)
        self.module.in_channels = len(kept)


def _is_unpadded(module: Any) -> bool:
    if isinstance(module.padding, str):
        return bool(module.padding == "valid" or all(k == 1 for k in module.kernel_size))
    return all(p == 0 for p in module.padding)


class _Gated(Layer):
    """GatedLinear: y = f(g) v, g and v the halves of W x + b."""

    def __init__(self, module: Any, f: Callable[[Tensor], Tensor]) -> None:
        self.module, self.f = module, f
        self.matrix = Matrix(module, *_NAMES.get(type(module), ("weight", "bias")))
        self.rows = self.matrix.weight.shape[0] // 2
        self.columns = self.matrix.weight.shape[1]

    def constants(self, inputs: Tensor) -> Tensor:
        gate, value = self.matrix.constants(inputs).chunk(2)
        gate = self.f(gate)
        return torch.where((gate == 0) | (value == 0), 0.0, gate * value)

    def reads(self) -> Tensor:
        return self.matrix.reads()

    def keep_rows(self, kept: Tensor) -> None:
        self.matrix.keep_rows(torch.cat([kept, kept + self.rows]))
        self.module.out_features = len(kept)

    def keep_columns(self, kept: Tensor, constants: Tensor) -> None:
        self.matrix.keep_columns(kept, constants)
        self.module.in_features = len(kept)


_NAMES = {MLP: ("weight1", "bias1")}


class _Hidden(_Gated):
    """The first layer of a gated MLP."""

    def keep_rows(self, kept: Tensor) -> None:
        self.matrix.keep_rows(torch.cat([kept, kept + self.rows]))


class _MLP(Layer):
    """MLP: what lies between its layers is its own."""

    def __init__(self, module: MLP) -> None:
        self.module = module
        f = activation_of(module)
        self.first = Matrix(module, "weight1", "bias1")
        self.hidden = _Hidden(module, f) if module.gated else None
        self.f = f
        self.second = Matrix(module, "weight2", "bias2")
        self.rows, self.columns = module.out_features, module.in_features

    def _inner(self, inputs: Tensor) -> Tensor:
        if self.hidden is not None:
            return self.hidden.constants(inputs)
        return self.f(self.first.constants(inputs))

    def constants(self, inputs: Tensor) -> Tensor:
        return self.second.constants(self._inner(inputs))

    def reads(self) -> Tensor:
        return self.first.reads()

    def keep_rows(self, kept: Tensor) -> None:
        self.second.keep_rows(kept)
        self.module.out_features = len(kept)

    def keep_columns(self, kept: Tensor, constants: Tensor) -> None:
        self.first.keep_columns(kept, constants)
        self.module.in_features = len(kept)

    def compact(self, inputs: Tensor) -> bool:
        """Removes hidden features that are constant or never read; whether there were any."""
        constants = self._inner(inputs)
        needed = constants.isnan() & self.second.reads()
        kept = at_least_one(needed)
        if len(kept) == len(needed):
            return False
        self.second.keep_columns(kept, constants)
        if self.hidden is not None:
            self.hidden.keep_rows(kept)
        else:
            self.first.keep_rows(kept)
        self.module.hidden_features = len(kept)
        return True


class BatchNorm:
    """In eval an affine map of each channel."""

    def __init__(self, module: Any) -> None:
        self.module = module

    def constants(self, inputs: Tensor) -> Tensor:
        m = self.module
        scale = (m.running_var.double() + m.eps).rsqrt()
        shift = -m.running_mean.double() * scale
        if m.affine:
            scale = scale * m.weight.detach().double()
            shift = shift * m.weight.detach().double() + m.bias.detach().double()
        # A channel whose scale is 0 is constant whatever comes in.
        return torch.where(scale == 0, shift, inputs.double() * scale + shift)

    def keep(self, kept: Tensor) -> None:
        for name in ("weight", "bias", "running_mean", "running_var"):
            value = getattr(self.module, name)
            if isinstance(value, nn.Parameter):
                setattr(
                    self.module,
                    name,
                    nn.Parameter(value.detach()[kept].clone(), value.requires_grad),
                )
            elif value is not None:
                setattr(self.module, name, value[kept].clone())
        self.module.num_features = len(kept)


def at_least_one(needed: Tensor) -> Tensor:
    """The indexes of what is needed; a layer without features is none."""
    kept = needed.nonzero().flatten()
    return kept if len(kept) else torch.zeros(1, dtype=torch.long, device=needed.device)


def activation_of(module: Any) -> Callable[[Tensor], Tensor]:
    made = resolve(type(module).__name__, module.activation)
    return lambda z: activations.apply(z, made)


def layer_of(module: nn.Module) -> Layer | None:
    """A supported layer, exactly of its class: a subclass may do something else."""
    kind = type(module)
    if kind is nn.Linear:
        return _Linear(module)
    if kind is LinearAct:
        return _Linear(module, activation_of(module))
    if kind is GatedLinear:
        return _Gated(module, activation_of(module))
    if kind is MLP:
        return _MLP(module)  # type: ignore[arg-type]
    if kind in CONVOLUTIONS and module.groups == 1:
        return _Convolution(module)
    return None
