"""What `activation` arguments mean: a name or a module of torch.nn as a code and two numbers."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

from torch import Tensor, nn

from torchcalc.ops._library import _C
from torchcalc.reference import activations as reference

# What is kept for backward: math::Saved in csrc/math/activations.h.
NOTHING, INPUT, OUTPUT, SCALED_OUTPUT, BITS = range(5)

# A name's position is its code.
NAMES = tuple(reference.ACTIVATIONS)


class Activation(NamedTuple):
    """a and b are its parameters, 0 where it has none."""

    name: str
    code: int
    a: float
    b: float


def _activation(name: str, *parameters: float) -> Activation:
    a, b = (*parameters, 0.0, 0.0)[:2]
    return Activation(name, NAMES.index(name), float(a), float(b))


_BY_NAME = {name: _activation(name, *reference.DEFAULTS.get(name, ())) for name in NAMES}

# Each module's name and parameters. nn.GELU's name depends on them.
_MODULES: dict[type, Callable[[Any], tuple[Any, ...]]] = {
    nn.Identity: lambda m: ("identity",),
    nn.ReLU: lambda m: ("relu",),
    nn.ReLU6: lambda m: ("relu6",),
    nn.LeakyReLU: lambda m: ("leaky_relu", m.negative_slope),
    nn.ELU: lambda m: ("elu", m.alpha),
    nn.CELU: lambda m: ("celu", m.alpha),
    nn.SELU: lambda m: ("selu",),
    nn.GELU: lambda m: ("gelu" if m.approximate == "none" else "gelu_tanh",),
    nn.SiLU: lambda m: ("silu",),
    nn.Mish: lambda m: ("mish",),
    nn.Softplus: lambda m: ("softplus", m.beta, m.threshold),
    nn.Sigmoid: lambda m: ("sigmoid",),
    nn.Tanh: lambda m: ("tanh",),
    nn.Hardswish: lambda m: ("hardswish",),
    nn.Hardsigmoid: lambda m: ("hardsigmoid",),
    nn.Hardtanh: lambda m: ("hardtanh", m.min_val, m.max_val),
    nn.Softsign: lambda m: ("softsign",),
}


def resolve(op: str, activation: Any) -> Activation:
    """Of a name, with torch's defaults, or of a module of torch.nn, with its parameters.

    Raises:
        TypeError: neither of them.
        ValueError: an unknown name, or parameters that make no function.
    """
    if type(activation) is str:
        found = _BY_NAME.get(activation)
        if found is None:
            raise ValueError(
                f"{op}: activation must be one of {', '.join(NAMES)}, got {activation!r}"
            )
        return found
    if type(activation) is Activation:
        return activation
    told = _MODULES.get(type(activation))
    if told is None:
        kinds = ", ".join(f"nn.{kind.__name__}" for kind in _MODULES)
        raise TypeError(
            f"{op}: activation must be a name ({', '.join(NAMES)}) or one of torch.nn's modules "
            f"({kinds}), got {type(activation).__module__}.{type(activation).__qualname__}"
        )
    name, *parameters = told(activation)
    for value in parameters:
        if not isinstance(value, numbers.Real):
            raise TypeError(f"{op}: a parameter of activation {name} is no number: {value!r}")
    found = _activation(name, *parameters)
    _check(op, found)
    return found


def _check(op: str, activation: Activation) -> None:
    name, _, a, b = activation
    if math.isnan(a) or math.isnan(b):
        raise ValueError(f"{op}: a parameter of activation {name} is NaN")
    if name == "celu" and a == 0:
        raise ValueError(f"{op}: alpha of activation celu must not be 0")
    if name == "hardtanh" and a > b:
        raise ValueError(f"{op}: activation hardtanh must have min_val <= max_val, got {a} > {b}")


def by_code(code: int, a: float, b: float) -> Activation:
    """The activation that an op was given."""
    return Activation(NAMES[code], code, a, b)


@lru_cache(maxsize=1024)
def saved_for(code: int, a: float, b: float, residual: bool, dropout: bool) -> int:
    """What linear_act keeps for backward: as little as tells the derivative."""
    saved: int = _C.saved_for(code, a, b, residual, dropout)
    return saved


def third_derivative(activation: Activation, u: Tensor, from_output: bool) -> Tensor | None:
    """f'''(z), or of the output d^2 F_1 / da^2; None where it is 0. Autograd differentiates on."""
    table = reference.THIRD_FROM_OUTPUT if from_output else reference.THIRD
    third = table.get(activation.name)
    return None if third is None else third(u, *reference.parameters(activation))
