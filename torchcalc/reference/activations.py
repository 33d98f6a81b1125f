"""Activations in plain PyTorch, and their derivatives of any order.

An activation's parameters are numbers, in the order of torch.nn.functional's arguments.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# A name's position is its code in csrc/math/activations.h.
ACTIVATIONS: dict[str, Callable[..., Tensor]] = {
    "identity": lambda z: z,
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": lambda z: F.gelu(z, approximate="tanh"),
    "silu": F.silu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "relu6": F.relu6,
    "leaky_relu": lambda z, slope=0.01: F.leaky_relu(z, slope),
    "relu_squared": lambda z: F.relu(z).square(),
    "elu": lambda z, alpha=1.0: F.elu(z, alpha),
    # The derivative of torch's own takes 1 / alpha in float32.
    "celu": lambda z, alpha=1.0: (
        alpha * F.elu(z / alpha)
        if alpha > 0
        else torch.where(z >= 0, z, alpha * torch.expm1(z / alpha))
    ),
    "selu": F.selu,
    "quick_gelu": lambda z: z * torch.sigmoid(1.702 * z),
    "mish": F.mish,
    "softplus": lambda z, beta=1.0, threshold=20.0: F.softplus(z, beta, threshold),
    "hardswish": F.hardswish,
    "hardsigmoid": lambda z: F.relu6(z + 3) / 6,  # F.hardsigmoid has no second derivative
    "hardtanh": lambda z, low=-1.0, high=1.0: F.hardtanh(z, low, high),
    "softsign": F.softsign,
}


# Parameters, with torch's defaults.
DEFAULTS: dict[str, tuple[float, ...]] = {
    "leaky_relu": (0.01,),
    "elu": (1.0,),
    "celu": (1.0,),
    "softplus": (1.0, 20.0),
    "hardtanh": (-1.0, 1.0),
}

_SELU = 1.0507009873554804934, 1.6732632423543772848  # scale, alpha

# f'(z) as a function of the output a = f(z), where it is one.
FROM_OUTPUT: dict[str, Callable[..., Tensor]] = {
    "identity": torch.ones_like,
    "relu": lambda a: (~(a <= 0)).to(a.dtype),
    "tanh": lambda a: 1 - a * a,
    "sigmoid": lambda a: a * (1 - a),
    "relu6": lambda a: ((a > 0) & (a < 6)).to(a.dtype),
    "leaky_relu": lambda a, slope=0.01: torch.where(a > 0, torch.ones_like(a), slope),
    "elu": lambda a, alpha=1.0: torch.where(a > 0, 1.0, a + alpha),
    "celu": lambda a, alpha=1.0: torch.where(a > 0, 1.0, a / alpha + 1),
    "selu": lambda a: torch.where(a > 0, _SELU[0], a + _SELU[0] * _SELU[1]),
    "softplus": lambda a, beta=1.0, threshold=20.0: torch.where(
        a * beta > threshold, 1.0, -torch.expm1(-a * beta)
    ),
    "hardsigmoid": lambda a: ((a > 0) & (a < 1)).to(a.dtype) / 6,
    "hardtanh": lambda a, low=-1.0, high=1.0: ((a > low) & (a < high)).to(a.dtype),
    "softsign": lambda a: (1 - a.abs()).square(),
}


def parameters(activation: Any) -> tuple[float, ...]:
    """Those of an Activation (ops/activations.py) that its function takes."""
    return (activation.a, activation.b)[: len(DEFAULTS.get(activation.name, ()))]


def apply(z: Tensor, activation: Any) -> Tensor:
    """f(z)."""
    return ACTIVATIONS[activation.name](z, *parameters(activation))


def derivative(
    c: Tensor, u: Tensor, activation: str, order: int, *parameters: float, from_output: bool
) -> Tensor:
    """c * F_order(u), with u = z and F_k = f^(k), or u = a and F_k the (k-1)th derivative of F_1.

    Autograd takes the derivatives one from another, so the order has no bound.
    """
    if from_output and order == 1:
        return c * FROM_OUTPUT[activation](u, *parameters)
    if order == 0:
        return c * ACTIVATIONS[activation](u, *parameters)

    def lower(v: Tensor) -> Tensor:
        return derivative(
            torch.ones_like(v), v, activation, order - 1, *parameters, from_output=from_output
        )

    return torch.as_tensor(torch.func.vjp(lower, u)[1](c)[0])


def _gelu_third(z: Tensor) -> Tensor:
    return (z**3 - 4 * z) * torch.exp(-z * z / 2) / math.sqrt(2 * math.pi)


def _gelu_tanh_third(z: Tensor) -> Tensor:
    k, c = math.sqrt(2 / math.pi), 0.044715
    t = torch.tanh(k * (z + c * z**3))
    w1, w2, w3 = k * (1 + 3 * c * z * z), 6 * k * c * z, 6 * k * c  # derivatives of tanh's argument
    t2 = w2 - 2 * t * w1 * w1
    t3 = w3 - 6 * t * w1 * w2 - 2 * w1**3 * (1 - 3 * t * t)
    return (1 - t * t) * (1.5 * t2 + z / 2 * t3)


def _swish_third(z: Tensor, k: float) -> Tensor:
    s = torch.sigmoid(k * z)
    p, q = s * (1 - s), 1 - 2 * s
    return k * k * p * (q * (3 + k * z * q) - 2 * k * z * p)


def _mish_third(z: Tensor) -> Tensor:
    s, t = torch.sigmoid(z), torch.tanh(F.softplus(z))
    t1 = (1 - t * t) * s
    g = 1 - s - 2 * t * s  # t2 / t1
    t2 = t1 * g
    g1 = -s * (1 - s) * (1 + 2 * t) - 2 * t1 * s
    return 3 * t2 + z * (t2 * g + t1 * g1)


def _tanh_third(z: Tensor) -> Tensor:
    t2 = torch.tanh(z).square()
    return (1 - t2) * (6 * t2 - 2)


def _sigmoid_third(z: Tensor) -> Tensor:
    s = torch.sigmoid(z)
    p = s * (1 - s)
    return p * (1 - 6 * p)


def _elu_third(z: Tensor, negative: float, k: float) -> Tensor:
    return torch.where(z > 0, 0.0, negative * k**3 * torch.exp(k * z.clamp(max=0)))


def _softplus_third(z: Tensor, beta: float = 1.0, threshold: float = 20.0) -> Tensor:
    s = torch.sigmoid(z * beta)
    return torch.where(z * beta > threshold, 0.0, beta**2 * s * (1 - s) * (1 - 2 * s))


def _softplus_output_third(a: Tensor, beta: float = 1.0, threshold: float = 20.0) -> Tensor:
    return torch.where(a * beta > threshold, 0.0, -(beta**2) * torch.exp(-a * beta))


# f''', and F_3 = d^2 F_1 / da^2 of the output, out of operations that autograd differentiates on:
# where they are not 0.
THIRD: dict[str, Callable[..., Tensor]] = {
    "gelu": _gelu_third,
    "gelu_tanh": _gelu_tanh_third,
    "silu": lambda z: _swish_third(z, 1.0),
    "tanh": _tanh_third,
    "sigmoid": _sigmoid_third,
    "elu": lambda z, alpha=1.0: _elu_third(z, alpha, 1.0),
    "celu": lambda z, alpha=1.0: _elu_third(z, alpha, 1 / alpha),
    "selu": lambda z: _elu_third(z, math.prod(_SELU), 1.0),
    "quick_gelu": lambda z: _swish_third(z, 1.702),
    "mish": _mish_third,
    "softplus": _softplus_third,
    "softsign": lambda z: 6 / (1 + z.abs()) ** 4,
}
THIRD_FROM_OUTPUT: dict[str, Callable[..., Tensor]] = {
    "tanh": lambda a: torch.full_like(a, -2.0),
    "sigmoid": lambda a: torch.full_like(a, -2.0),
    "softplus": _softplus_output_third,
    "softsign": lambda a: torch.full_like(a, 2.0),
}
